"""`moco-det export`: the file does what the detector does, without this project."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moco_det.foundation.errors import InputError
from moco_det.settings import zoo
from moco_det.settings.config import dump, load_config
from moco_det.standalone import export
from moco_det.standalone.build import build_detector
from moco_det.standalone.detector import GeneralizedRCNN
from moco_det.standalone.export import check_same, difference, export_program
from moco_det.standalone.roi_layers import ImageDetections
from moco_det_tools.entry import run
from moco_det_tools.export import main
from tests.standalone.tiny import CLASSES, KEYS, tiny_config

ALL = {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0", "INPUT.MIN_SIZE_TEST": "80"}
NAMES = [f"thing {i}" for i in range(CLASSES)]
SIZES = [(65, 200), (131, 67), (96, 96)]

ALONE = """
import sys
sys.modules["moco_det"] = None
import torch, torchvision
folder = sys.argv[1]
files = {"moco_det.json": ""}
program = torch.export.load(folder + "/out/detector.pt2", extra_files=files).module()
found = [program(image) for image in torch.load(folder + "/images.pt")]
torch.save((files, found), folder + "/found.pt")
"""


def saved(folder: Path, changes: dict[str, str]) -> GeneralizedRCNN:
    """A detector of random weights, and what its run would have left."""
    cfg = tiny_config(changes)
    torch.manual_seed(0)
    model = build_detector(cfg).eval()
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(dump(cfg))
    (folder / "results.jsonl").write_text(json.dumps({"dataset": {"classes": NAMES}}) + "\n")
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return model


def images_of_all_sizes() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(256, (3, *s), dtype=torch.uint8, generator=generator) for s in SIZES]


@torch.no_grad()
def assert_the_same(
    model: GeneralizedRCNN, found: list[tuple[torch.Tensor, ...]], count: int
) -> None:
    for image, outputs in zip(images_of_all_sizes(), found, strict=True):
        wanted = model([image])[0]
        assert len(outputs[0]) == len(wanted.boxes) == count
        assert len(outputs) == (3 if wanted.masks is None else 4)
        assert max(difference(wanted, outputs).values()) < 1e-3


@pytest.mark.slow
def test_an_exported_detector_finds_the_same_at_every_size_without_this_project(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved(tmp_path, ALL)
    file, photo = tmp_path / "out" / "detector.pt2", tmp_path / "photo.png"
    assert run(lambda: main([str(tmp_path), "-o", str(file), "--image", str(photo)])) == 0
    said = capsys.readouterr().out
    assert f"as the detector on {photo} (5 detections)" in said and ", masks " in said
    assert [path.name for path in file.parent.iterdir()] == ["detector.pt2"]
    torch.save(images_of_all_sizes(), tmp_path / "images.pt")
    subprocess.run([sys.executable, "-c", ALONE, str(tmp_path)], cwd=tmp_path, check=True)
    files, found = torch.load(tmp_path / "found.pt")
    assert_the_same(model, found, 5)
    assert json.loads(files[export.METADATA]) == {
        "classes": NAMES,
        "format": "RGB",
        "short_edge": 80,
        "longest_edge": 96,
        "least_side": 65,
        "score_threshold": 0.0,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "threshold", "count"),
    [("own_R18_C4", "0.0", 5), ("own_R18_C4", "0.99", 0)],
)
def test_a_c4_detector_is_exported_also_where_it_finds_nothing(
    config: str, threshold: str, count: int
) -> None:
    own = ("FPN", "ANCHOR", "MASK_HEAD", "FC_DIM")  # of the tiny detector alone
    keys = {key: value for key, value in KEYS.items() if not any(word in key for word in own)}
    keys |= {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": threshold}
    words = [word for pair in keys.items() for word in pair]
    torch.manual_seed(0)
    model = build_detector(load_config(zoo.get_config_file(config), words)).eval()
    content, differences, _ = export_program(model, images_of_all_sizes()[0], {})
    assert max(differences.values()) < 1e-3
    program = torch.export.load(io.BytesIO(content)).module()
    assert_the_same(model, [program(image) for image in images_of_all_sizes()], count)


def test_a_program_that_finds_something_else_is_refused() -> None:
    alike = {name: 0.99 * limit for name, limit in export.TOLERANCES.items()}
    check_same(alike)
    for name in alike:
        for wrong in (torch.inf, torch.nan, 1.01 * export.TOLERANCES[name] + 1e-9):
            with pytest.raises(InputError, match=f"{name} differ .* nothing is written; .*--image"):
                check_same({**alike, name: wrong})


def test_detections_are_compared_with_the_nearest_of_their_class() -> None:
    boxes = torch.tensor([[0.0, 0, 8, 8], [0.0, 0, 9, 9], [20.0, 20, 30, 30]])
    scores, classes = torch.tensor([0.9, 0.9, 0.5]), torch.tensor([0, 1, 1])
    wanted = ImageDetections(boxes, scores, classes)
    order = torch.tensor([1, 0, 2])  # two equal scores
    same = boxes[order], scores[order], classes[order]
    assert difference(wanted, same) == {"boxes": 0.0, "scores": 0.0, "classes": 0.0}
    moved = boxes[order] + torch.tensor([[0.0], [0.0], [0.25]]), *same[1:]
    assert difference(wanted, moved)["boxes"] == 0.25
    fewer = tuple(one[:2] for one in same)
    assert set(difference(wanted, fewer).values()) == {torch.inf}
    assert difference(wanted, (*same[:2], torch.zeros(3, dtype=torch.int64)))["classes"] == 1.0


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("detector.onnx", ["--image", "photo.png"], "detector.onnx: name a file that ends in .pt2"),
        ("detector.pt2", [], "test set cannot be read .*: name an image to compare on by --image"),
        ("detector.pt2", ["--image", "gone.png"], "gone.png does not exist"),
        (
            "detector.pt2",
            ["--image", "photo.png", "--opts", "INPUT.MIN_SIZE_TEST", "40"],
            "takes images from 65 pixels a side, and the config makes this one 53 x 40: raise",
        ),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    output: str,
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved(tmp_path, ALL)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        main([str(tmp_path), "-o", output, *options])
    assert sorted(tmp_path.iterdir()) == before
