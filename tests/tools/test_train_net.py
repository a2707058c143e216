"""tools/train_net.py as a user meets it: exit codes, one line for bad input, nothing left."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moco_det.data.scenes import ScenesPaths
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.results import read_rows
from moco_det.runs.engines import choose_engine
from moco_det.weights.architectures import backbone_tensors
from moco_det_tools.entry import run
from moco_det_tools.train_net import main
from tests.data.builders import write_voc
from tests.standalone.conftest import backbone_arrays, write_backbone
from tests.standalone.tiny import CLASSES, CONFIG, KEYS, scenes

START = ["--engine", "standalone", "--config-file", str(CONFIG)]
ENGINES = ["standalone", pytest.param("detectron2", marks=pytest.mark.detectron2)]


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> ScenesPaths:
    return scenes(tmp_path_factory.mktemp("painted"))


def arguments(
    painted: ScenesPaths, output: Path, changes: dict[str, str], options: tuple[str, ...] = ()
) -> list[str]:
    keys = KEYS | {
        "DATASETS.TRAIN": repr((painted.train,)),
        "DATASETS.TEST": repr((painted.test,)),
        "OUTPUT_DIR": repr(str(output)),
        "SOLVER.MAX_ITER": "1",
    }
    return [*START, *options, *[text for pair in (keys | changes).items() for text in pair]]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The option that asks for an engine; the last one given counts."""
    if request.param == "detectron2":
        pytest.importorskip("detectron2")
    return "--engine", request.param


def call(*args: Any) -> int:
    return run(lambda: main(arguments(*args)))


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one error line of what was printed last."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and text.rstrip().endswith(lines[0])
    return lines[0]


def write_torchvision(path: Path, *place: str, prefix: str = "", **beside: Any) -> Path:
    arrays = backbone_arrays()
    state: dict[str, Any] = {
        f"{prefix}{tensor.torchvision}": torch.from_numpy(arrays[tensor.detectron2])
        for tensor in backbone_tensors(ARCHITECTURES["resnet18"])
    }
    for key in place:
        state = {key: state, **beside}
    torch.save(state, path)
    return path


def without_categories(folder: Path, painted: ScenesPaths) -> dict[str, str]:
    content = json.loads(painted.train_json.read_text())
    del content["categories"]
    (folder / "bad.json").write_text(json.dumps(content))
    return {"DATASETS.TRAIN": repr((f"coco://{folder}/bad.json?images={painted.train_images}",))}


def without_images(folder: Path, painted: ScenesPaths) -> dict[str, str]:
    content = json.loads(painted.train_json.read_text())
    content |= {"images": [], "annotations": []}
    (folder / "bad.json").write_text(json.dumps(content))
    return {"DATASETS.TRAIN": repr((f"coco://{folder}/bad.json?images={painted.train_images}",))}


def missing_data(folder: Path, painted: ScenesPaths) -> dict[str, str]:
    return {"DATASETS.TEST": repr((f"coco://{folder}/bad.json?images={folder}",))}


def missing_images(folder: Path, painted: ScenesPaths) -> dict[str, str]:
    (folder / "bad").mkdir()
    return {"DATASETS.TRAIN": repr((f"coco://{painted.train_json}?images={folder}/bad",))}


def broken_images(folder: Path, painted: ScenesPaths) -> dict[str, str]:
    """Two of eight, which is more than an accident."""
    shutil.copytree(painted.train_images, folder / "bad")
    for name in ("000003.jpg", "000004.jpg"):
        (folder / "bad" / name).write_bytes(b"bad")
    return {"DATASETS.TRAIN": repr((f"coco://{painted.train_json}?images={folder}/bad",))}


def unknown_class_in_test(folder: Path, painted: ScenesPaths) -> dict[str, str]:
    box = (2, 3, 12, 13)
    write_voc(folder / "bad", {"a": [("apple", *box)], "b": [("pear", *box)]}, "train")
    write_voc(folder / "bad", {"c": [("plum", *box)]}, "test")
    return {
        "DATASETS.TRAIN": repr((f"voc://{folder}/bad?split=train",)),
        "DATASETS.TEST": repr((f"voc://{folder}/bad?split=test",)),
        "MODEL.ROI_HEADS.NUM_CLASSES": "2",
        "MODEL.MASK_ON": "False",
    }


def masks_without_masks(folder: Path, painted: ScenesPaths) -> dict[str, str]:
    return {
        "DATASETS.TRAIN": repr((painted.voc_train,)),
        "DATASETS.TEST": repr((painted.voc_test,)),
        "MODEL.ROI_HEADS.NUM_CLASSES": "7",  # the boxes of the first scenes have no striped disk
    }


def unknown_key(folder: Path, painted: ScenesPaths) -> dict[str, str]:
    return {"SOLVER.BAD": "1"}


def unknown_data(folder: Path, painted: ScenesPaths) -> dict[str, str]:
    return {"DATASETS.TRAIN": "('bad_2017_train',)"}


def wrong_number_of_classes(folder: Path, painted: ScenesPaths) -> dict[str, str]:
    return {"MODEL.ROI_HEADS.NUM_CLASSES": "80"}


def no_such_device(folder: Path, painted: ScenesPaths) -> dict[str, str]:
    return {"MODEL.DEVICE": "tpu"}


def missing_weights(folder: Path, painted: ScenesPaths) -> dict[str, str]:
    return {"MODEL.WEIGHTS": str(folder / "bad.pkl")}


def weights_at_an_address(folder: Path, painted: ScenesPaths) -> dict[str, str]:
    return {"MODEL.WEIGHTS": "s3://bucket/R-50.pkl"}


def weights_to_convert(folder: Path, painted: ScenesPaths) -> dict[str, str]:
    """As anybody's torch.save(model.state_dict()) leaves them."""
    return {"MODEL.WEIGHTS": str(write_torchvision(folder / "bad.pth"))}


def weights_in_a_run_of_another_kind(folder: Path, painted: ScenesPaths) -> dict[str, str]:
    """Under "model", where a detector's checkpoint has its own."""
    return {"MODEL.WEIGHTS": str(write_torchvision(folder / "bad.pth", "model", args=Path("a")))}


def weights_behind_a_prefix(folder: Path, painted: ScenesPaths) -> dict[str, str]:
    return {"MODEL.WEIGHTS": str(write_torchvision(folder / "bad.pth", prefix="model.trunk."))}


def empty_weights(folder: Path, painted: ScenesPaths) -> dict[str, str]:
    (folder / "bad.pkl").write_bytes(b"")
    return {"MODEL.WEIGHTS": str(folder / "bad.pkl")}


def weights_that_are_none(folder: Path, painted: ScenesPaths) -> dict[str, str]:
    (folder / "bad.pth").write_text("<html>404</html>")
    return {"MODEL.WEIGHTS": str(folder / "bad.pth")}


def weights_of_another_architecture(folder: Path, painted: ScenesPaths) -> dict[str, str]:
    write_backbone(folder / "bad.pkl", backbone_arrays())
    return {
        "MODEL.WEIGHTS": str(folder / "bad.pkl"),
        "MODEL.RESNETS.DEPTH": "34",
    }


def weights_of_another_input(folder: Path, painted: ScenesPaths) -> dict[str, str]:
    given = {"format": "BGR", "mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0]}
    write_backbone(folder / "bad.pkl", backbone_arrays(), input=given | {"stride_in_1x1": False})
    return {"MODEL.WEIGHTS": str(folder / "bad.pkl")}


Spoil = Callable[[Path, ScenesPaths], dict[str, str]]
BAD: dict[Spoil, str] = {
    without_categories: "bad.json",
    without_images: "bad.json",
    missing_data: "bad.json",
    missing_images: "bad",
    broken_images: "bad/000003.jpg",
    unknown_class_in_test: "'plum'",
    masks_without_masks: "MODEL.MASK_ON",
    unknown_key: "SOLVER.BAD",
    unknown_data: "bad_2017_train",
    wrong_number_of_classes: "MODEL.ROI_HEADS.NUM_CLASSES is 80",
    no_such_device: "MODEL.DEVICE is 'tpu'",
    missing_weights: "bad.pkl does not exist",
    weights_at_an_address: "write https://..., torchvision:resnet50, timm:NAME",
    weights_to_convert: "bad.pth weights/bad.pkl`, or let train-net --convert do it",
    weights_in_a_run_of_another_kind: "bad.pth weights/bad.pkl`, or let train-net --convert do it",
    weights_behind_a_prefix: "bad.pth weights/bad.pkl --from torchvision`",
    empty_weights: "bad.pkl is empty",
    weights_that_are_none: "bad.pth",
    weights_of_another_architecture: "bad.pkl does not fit this model",
    weights_of_another_input: "INPUT.FORMAT is RGB",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda f: f.__name__)
def test_bad_input_is_one_line_and_code_2_and_leaves_nothing(
    spoil: Spoil,
    engine: tuple[str, str],
    painted: ScenesPaths,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = spoil(tmp_path, painted)
    assert call(painted, tmp_path / "out", changes, engine) == 2
    assert BAD[spoil] in error_of(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config-file", "bad.yaml"], "config file bad.yaml does not exist"),
        (["--num-gpus", "0"], "--num-gpus must be above 0"),
        (["--machine-rank", "1"], "--machine-rank below --num-machines"),
    ],
)
def test_wrong_options_are_one_line_and_code_2(
    options: list[str],
    message: str,
    engine: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(lambda: main([*START, *engine, *options])) == 2
    assert message in error_of(capsys)


def test_a_machine_without_a_gpu_is_told_the_way_out(
    engine: tuple[str, str],
    painted: ScenesPaths,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert call(painted, tmp_path / "out", {"MODEL.DEVICE": "cuda"}, engine) == 2
    assert "MODEL.DEVICE cpu" in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_an_engine_that_is_not_installed_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from moco_det.foundation.errors import InputError

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert choose_engine("auto").engine == choose_engine("standalone").engine == "standalone"
    assert not choose_engine("auto").broken
    with pytest.raises(InputError, match="--engine standalone"):
        choose_engine("detectron2")


@pytest.mark.detectron2
def test_auto_takes_detectron2_where_it_can_be_imported() -> None:
    pytest.importorskip("detectron2")
    assert choose_engine("auto").engine == choose_engine("detectron2").engine == "detectron2"
    assert choose_engine("standalone").engine == "standalone"


@pytest.fixture(scope="module")
def finished(painted: ScenesPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one step, made by the tool, with its row elsewhere."""
    folder = tmp_path_factory.mktemp("runs")
    options = ("--results", str(folder / "results.jsonl"), "--init-name", "from nothing")
    assert call(painted, folder / "first", {}, options) == 0
    return folder / "first"


def test_a_run_ends_with_0_its_files_and_one_row(finished: Path) -> None:
    assert (finished / "model_final.pth").exists() and (finished / "predictions.json").exists()
    (row,) = (r.data for r in read_rows([finished.parent / "results.jsonl"]).rows)
    assert row["init"]["name"] == "from nothing" and row["run"] == row["output_dir"] == "first"
    assert row["config_name"] == "R18_FPN" and "--init-name 'from nothing'" in row["command"]
    assert row["command"].startswith("moco-det train-net --")


def test_a_finished_run_is_not_overwritten(
    finished: Path, painted: ScenesPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in finished.iterdir()}
    assert call(painted, finished, {}) == 2
    assert "first holds a finished run" in error_of(capsys)
    assert {p.name: p.stat().st_mtime_ns for p in finished.iterdir()} == before


def test_eval_only_scores_a_checkpoint_and_adds_no_row(
    finished: Path, painted: ScenesPaths, tmp_path: Path
) -> None:
    changes = {"MODEL.WEIGHTS": str(finished / "model_final.pth")}
    assert call(painted, tmp_path / "out", changes, ("--eval-only",)) == 0
    found = (tmp_path / "out" / "predictions.json").read_bytes()
    assert found == (finished / "predictions.json").read_bytes()
    assert not (tmp_path / "out" / "results.jsonl").exists()
    assert not (tmp_path / "out" / "model_final.pth").exists()


@pytest.mark.parametrize("scheme", ["voc", "coco"])
def test_own_data_is_named_in_the_yaml(
    scheme: str, engine: tuple[str, str], painted: ScenesPaths, tmp_path: Path
) -> None:
    names = {
        "voc": (painted.voc_train, painted.voc_test, "False"),
        "coco": (painted.train, painted.test, "True"),
    }
    train, test, masks = names[scheme]
    config = tmp_path / "own.yaml"
    config.write_text(
        f"_BASE_: {CONFIG}\nMODEL: {{MASK_ON: {masks}}}\n"
        f"DATASETS:\n  TRAIN: ['{train}']\n  TEST: ['{test}']\n"
    )
    keys = {k: v for k, v in KEYS.items() if not k.startswith("DATASETS.")}
    keys |= {"SOLVER.MAX_ITER": "1", "OUTPUT_DIR": str(tmp_path / "out")}
    if scheme == "voc":  # the boxes of the first scenes have no striped disk
        keys["MODEL.ROI_HEADS.NUM_CLASSES"] = "7"
    options = [text for pair in keys.items() for text in pair]
    assert run(lambda: main(["--config-file", str(config), *engine, *options])) == 0
    (row,) = (r.data for r in read_rows([tmp_path / "out" / "results.jsonl"]).rows)
    assert row["engine"]["name"] == engine[1] and row["config_name"] == "own"
    assert (row["dataset"]["train_uri"], row["dataset"]["test_uri"]) == (train, test)
    assert ("voc" in row["metrics"]) == (scheme == "voc")


def test_a_checkpoint_is_converted_first_where_that_is_asked(
    engine: tuple[str, str],
    painted: ScenesPaths,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {"MODEL.WEIGHTS": str(write_torchvision(tmp_path / "mine.pth.tar", "state_dict"))}
    assert call(painted, tmp_path / "out", changes, ("--convert", *engine)) == 0
    assert "difference    stem 0.0e+00" in capsys.readouterr().out
    (made,) = (tmp_path / "weights").iterdir()
    (row,) = (r.data for r in read_rows([tmp_path / "out" / "results.jsonl"]).rows)
    assert row["init"]["weights"] == made.name and made.name.startswith("mine-")
    assert row["init"]["source"]["format"] == "torchvision"
    changes = {"MODEL.WEIGHTS": str(made)}  # what is a backbone already stays as it is
    assert call(painted, tmp_path / "two", changes, ("--convert", *engine)) == 0
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [made.name]
    changes = weights_behind_a_prefix(tmp_path, painted)
    assert call(painted, tmp_path / "three", changes, ("--convert", *engine)) == 2
    assert "--from torchvision" in error_of(capsys)


def test_one_broken_image_among_many_is_skipped_with_a_warning_and_strict_refuses(
    painted: ScenesPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 24 entries share the eight files, one of them a broken copy
    content = json.loads(painted.train_json.read_text())
    images = tmp_path / "images"
    images.mkdir()
    rows: dict[str, Any] = content | {"images": [], "annotations": []}
    for copy in range(3):
        for image in content["images"]:
            name = f"{copy}_{image['file_name']}"
            shutil.copyfile(painted.train_images / image["file_name"], images / name)
            number = image["id"] + 100 * copy
            rows["images"].append(image | {"id": number, "file_name": name})
            for row in content["annotations"]:
                if row["image_id"] == image["id"]:
                    identity = {"id": row["id"] + 1000 * copy, "image_id": number}
                    rows["annotations"].append(row | identity)
    (images / "1_000002.jpg").write_bytes(b"broken")
    (tmp_path / "many.json").write_text(json.dumps(rows))
    changes = {"DATASETS.TRAIN": repr((f"coco://{tmp_path}/many.json?images={images}",))}
    assert call(painted, tmp_path / "strict", changes, ("--strict",)) == 2
    assert "1_000002.jpg" in error_of(capsys)
    assert not (tmp_path / "strict").exists()
    assert call(painted, tmp_path / "out", changes) == 0
    (row,) = (r.data for r in read_rows([tmp_path / "out" / "results.jsonl"]).rows)
    assert any("1 of 24 images skipped" in w and "1_000002.jpg" in w for w in row["warnings"])
    assert row["dataset"]["train_images"] == 23


def test_the_tiny_settings_fit_the_scenes(painted: ScenesPaths) -> None:
    assert len(painted.classes) == CLASSES
