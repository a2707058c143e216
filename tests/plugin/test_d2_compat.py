"""lvis and cityscapesscripts as they are today, inside detectron2 as it is today."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from moco_det.foundation.errors import InputError

pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

from moco_det.plugin.d2_compat import (  # noqa: E402
    ABOVE_CITYSCAPES,
    CITYSCAPES_SCORER,
    GONE,
    find_cityscapes,
    repaired_scorers,
)

OURS = ("deeplearning", "cityscapesscripts")


@pytest.fixture
def without_cityscapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """sys.modules as before a run touched the package, and as before the test afterwards."""
    before = dict(sys.modules)
    for name in [n for n in sys.modules if n.split(".")[0] in OURS]:
        del sys.modules[name]
    yield
    for name in [n for n in sys.modules if n.split(".")[0] in OURS]:
        del sys.modules[name]
    sys.modules.update({n: m for n, m in before.items() if n.split(".")[0] in OURS})


@pytest.fixture
def cityscapes(without_cityscapes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of that name with the two modules that detectron2 takes."""
    for folder in ("helpers", "evaluation"):
        (tmp_path / "cityscapesscripts" / folder).mkdir(parents=True)
        (tmp_path / "cityscapesscripts" / folder / "__init__.py").touch()
    (tmp_path / "cityscapesscripts" / "__init__.py").touch()
    (tmp_path / "cityscapesscripts" / "helpers" / "labels.py").write_text("labels = [3]\n")
    scorer = tmp_path / f"{CITYSCAPES_SCORER.replace('.', '/')}.py"
    scorer.write_text("def writeDict2JSON(content, path):\n    open(path, 'w').close()\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    return tmp_path


def test_the_public_package_is_found_where_detectron2_looks_for_it(cityscapes: Path) -> None:
    for _ in range(2):
        find_cityscapes()
    inside = f"{ABOVE_CITYSCAPES[-1]}.cityscapesscripts.helpers.labels"
    assert importlib.import_module(inside).labels == [3]
    assert str(importlib.import_module(inside).__file__).startswith(str(cityscapes))


def test_a_tree_of_that_name_that_is_there_stays(
    cityscapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cityscapes / "deeplearning").mkdir()
    (cityscapes / "deeplearning" / "__init__.py").write_text("own = True\n")
    find_cityscapes()
    assert importlib.import_module("deeplearning").own


def test_a_missing_package_is_told_before_a_run(
    without_cityscapes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cityscapesscripts", None)
    with pytest.raises(InputError, match="pip install cityscapesscripts"):
        find_cityscapes()


def test_the_scorer_leaves_no_file_in_the_working_folder(cityscapes: Path) -> None:
    find_cityscapes()
    inside = importlib.import_module(f"{ABOVE_CITYSCAPES[-1]}.{CITYSCAPES_SCORER}")
    with repaired_scorers():
        inside.writeDict2JSON({}, str(cityscapes / "matches.json"))
    assert not (cityscapes / "matches.json").exists()
    inside.writeDict2JSON({}, str(cityscapes / "matches.json"))
    assert (cityscapes / "matches.json").exists()


def test_numpys_old_names_are_lent_to_a_scorer_and_taken_back() -> None:
    before = {name: vars(np).get(name) for name in GONE}
    with repaired_scorers():
        assert np.float(2) == 2.0  # type: ignore[attr-defined]
        assert np.in1d(np.array([[1, 5]]), [5]).reshape(-1).tolist() == [False, True]
    assert {name: vars(np).get(name) for name in GONE} == before
