"""Where detectron2 is absent the project says so in one line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moco_det.foundation.errors import InputError
from moco_det.runs.engines import choose_engine


def forget_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("moco_det.plugin")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def no_detectron2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own way of saying that a module is not to be found."""
    monkeypatch.setitem(sys.modules, "detectron2", None)
    forget_plugin(monkeypatch)


def test_asking_for_an_absent_detectron2_exits_2_with_one_line(
    no_detectron2: None,
    train_net: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train_net("--engine", "detectron2", OUTPUT_DIR=str(tmp_path / "run")) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: --engine detectron2: it cannot be imported")
    assert not (tmp_path / "run").exists()


def test_auto_takes_standalone_where_detectron2_is_absent(no_detectron2: None) -> None:
    assert choose_engine("auto").engine == "standalone"


def test_importing_the_plugin_without_detectron2_is_an_import_error_in_one_line(
    no_detectron2: None,
) -> None:
    with pytest.raises(ImportError, match="--engine standalone") as caught:
        importlib.import_module("moco_det.plugin")
    assert isinstance(caught.value, InputError)
    assert "\n" not in str(caught.value)


def test_a_folder_called_detectron2_makes_auto_take_standalone_and_say_so(
    monkeypatch: pytest.MonkeyPatch,
    train_net: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # a clone of the repository in the working directory is found as an empty namespace package
    for name in [n for n in sys.modules if n.split(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "detectron2", None)  # so that the empty package is forgotten
    del sys.modules["detectron2"]
    (tmp_path / "detectron2" / "docs").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *[p for p in sys.path if not has_it(p)]])
    importlib.invalidate_caches()
    forget_plugin(monkeypatch)
    # NUM_CLASSES is wrong, so that the standalone engine stops before it trains
    code = train_net(OUTPUT_DIR=str(tmp_path / "run"), MODEL__ROI_HEADS__NUM_CLASSES="3")
    message = capsys.readouterr()
    assert code == 2
    assert "--engine auto takes standalone: detectron2 cannot be imported" in message.out
    assert "NUM_CLASSES is 3" in message.err


def has_it(folder: str) -> bool:
    return (Path(folder) / "detectron2" / "__init__.py").is_file()
