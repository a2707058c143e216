"""The names that a program imports, and the examples of docs/python.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import moco_det
from moco_det.foundation.errors import InputError
from moco_det.settings.config import dump
from tests.standalone.tiny import scenes, tiny_config

REPO = Path(__file__).resolve().parents[1]
PAGE = (REPO / "docs" / "python.md").read_text(encoding="utf-8")


def test_every_public_name_is_there_and_in_the_documentation() -> None:
    for name in moco_det.PUBLIC:
        assert getattr(moco_det, name) is not None
        assert name in dir(moco_det) and f"`{name}" in PAGE
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        moco_det.nothing  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, moco_det; print({'torch', 'numpy', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples name: a checkpoint, a config and a photo."""
    folder = tmp_path_factory.mktemp("examples")
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=4)
    state = {f"module.encoder_q.{n}": t for n, t in network.state_dict().items()}
    torch.save({"state_dict": state, "arch": "resnet18"}, folder / "checkpoint_0199.pth.tar")
    painted = scenes(folder / "scenes")
    keys = {"DATASETS.TRAIN": repr((painted.train,)), "DATASETS.TEST": repr((painted.test,))}
    keys |= {"SOLVER.MAX_ITER": "2", "SOLVER.STEPS": "()"}
    keys |= {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0"}
    (folder / "detector.yaml").write_text(dump(tiny_config(keys)))
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.jpg")
    return folder


def test_the_examples_of_the_documentation_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 4
    monkeypatch.chdir(place)
    exec("\n".join(blocks), {})
    printed = capsys.readouterr().out
    assert "resnet18 RGB (64, 3, 7, 7)" in printed and "report.html" in printed


@pytest.mark.parametrize(
    "engine", ["standalone", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
def test_a_predictor_gives_the_same_for_a_file_a_picture_and_an_array(
    engine: str, place: Path, tmp_path: Path
) -> None:
    if engine == "detectron2":
        pytest.importorskip("detectron2")
    output = tmp_path / "run"
    changes = ["OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", "1"]
    moco_det.train(place / "detector.yaml", changes, engine=engine)
    (row,) = map(json.loads, (output / "results.jsonl").read_text().splitlines())
    assert row["engine"]["name"] == engine
    predict = moco_det.Predictor(output, threshold=0.0, engine=engine)
    photo = tmp_path / "photo.png"
    with Image.open(place / "photo.jpg") as picture:
        picture.save(photo)
        found = [predict(photo), predict(picture), predict(np.asarray(picture))]
    first = found[0]
    count = len(first.scores)
    assert count > 0 and first.boxes.shape == (count, 4) and len(first.classes) == count
    assert first.masks is not None and first.masks.shape == (count, 60, 90)
    assert (np.diff(first.scores) <= 0).all() and set(first.classes) <= set(
        row["dataset"]["classes"]
    )
    assert (first.boxes[:, 2:] <= [90.01, 60.01]).all() and (first.boxes >= 0).all()
    for other in found[1:]:
        np.testing.assert_array_equal(other.boxes, first.boxes)
        np.testing.assert_array_equal(other.masks, first.masks)
    assert len(moco_det.Predictor(output, threshold=1.0, engine=engine)(photo).scores) == 0
    with pytest.raises(InputError, match="does not exist"):
        predict(tmp_path / "absent.jpg")
    for array in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InputError, match="RGB array"):
            predict(array)
    with pytest.raises(InputError, match="between 0 and 1"):
        moco_det.Predictor(output, threshold=5, engine=engine)


def test_a_report_takes_one_file_without_a_list(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no results file absent\.jsonl"):
        moco_det.make_report("absent.jsonl", tmp_path / "report")
