"""tools/train_net.py --engine detectron2, through its real path, on 64-pixel scenes."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from moco_det.data.scenes import ScenesPaths
from moco_det.results import read_rows
from moco_det.runs.row import sha256_of
from tests.standalone.tiny import coded_scenes

pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

import detectron2  # noqa: E402

FILES = {"config.yaml", "log.txt", "metrics.jsonl", "predictions.json", "results.jsonl"}
Tool = Callable[..., int]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, train_net: Tool, backbone_file: Path
) -> Path:
    """Four iterations from a converted backbone, on the engine asked for by name."""
    output = tmp_path_factory.mktemp("runs") / "tiny"
    assert (
        train_net(
            *("--engine", "detectron2", "--init-name", "mine"),
            OUTPUT_DIR=str(output),
            MODEL__WEIGHTS=str(backbone_file),
        )
        == 0
    )
    return output


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "tiny"))


def test_a_run_leaves_the_files_of_a_run(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= FILES | {"model_final.pth", "last_checkpoint"}
    assert "metrics.json" not in names


def test_its_row_is_valid_and_names_the_engine(finished: Path, backbone_file: Path) -> None:
    rows = read_rows([finished])
    assert rows.problems == ()
    (row,) = [row.data for row in rows.rows]
    assert row["engine"]["name"] == "detectron2"
    assert row["engine"]["version"] == detectron2.__version__
    assert row["init"]["name"] == "mine"
    assert row["init"]["weights"] == backbone_file.name
    assert row["init"]["source"]["format"] == "torchvision"
    assert (row["iterations"], row["batch"], row["seed"]) == (4, 2, 3)
    assert (row["config_name"], row["task"], row["output_dir"]) == ("R18_FPN", "box+mask", ".")
    assert row["dataset"]["train_images"] == 12
    assert row["config"] == (finished / "config.yaml").read_text()
    assert yaml.safe_load(row["config"])["MODEL"]["FPN"]["OUT_CHANNELS"] == 32


def test_what_the_cpu_does_not_do_in_half_precision_is_said(finished: Path) -> None:
    (row,) = [row.data for row in read_rows([finished]).rows]
    assert yaml.safe_load(row["config"])["SOLVER"]["AMP"]["ENABLED"] is True
    assert row["precision"] == "float32"
    assert any("AMPTrainer needs CUDA" in line for line in row["warnings"])


def test_the_first_line_of_the_log_names_engine_and_precision(finished: Path) -> None:
    lines = (finished / "log.txt").read_text().splitlines()
    assert f"engine detectron2 {detectron2.__version__}" in lines[0]
    assert "float32 on cpu" in lines[0]
    assert "seed 3" in lines[0]
    assert any("100 of 100 backbone tensors loaded from" in line for line in lines)


def test_metrics_have_a_line_for_every_logged_step_and_for_the_score(finished: Path) -> None:
    *steps, scores = lines_of(finished / "metrics.jsonl")
    assert [line["iteration"] for line in steps] == [0, 1, 2, 3]
    losses = ("loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc", "loss_mask")
    for line in steps:
        assert line["total_loss"] == pytest.approx(sum(line[name] for name in losses), rel=1e-6)
        assert line["lr"] > 0
    assert scores["iteration"] == 3
    assert {"bbox/AP", "bbox/AP50", "segm/AP"} <= scores.keys()
    assert not any("loss" in name for name in scores)


def test_the_checkpoint_opens_without_executing_anything(finished: Path) -> None:
    content = torch.load(finished / "model_final.pth", weights_only=True)
    assert {"model", "trainer", "iteration"} <= content.keys()


def test_a_finished_run_is_not_overwritten(
    finished: Path, train_net: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "log.txt").read_bytes()
    assert train_net("--engine", "detectron2", OUTPUT_DIR=str(finished)) == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert (finished / "log.txt").read_bytes() == before


def test_resume_goes_on_from_the_last_checkpoint_and_keeps_the_log(
    copy: Path, train_net: Tool, backbone_file: Path
) -> None:
    before = lines_of(copy / "metrics.jsonl")
    code = train_net(
        *("--engine", "detectron2", "--resume"),
        OUTPUT_DIR=str(copy),
        MODEL__WEIGHTS=str(backbone_file),
        SOLVER__MAX_ITER="6",
    )
    assert code == 0
    after = lines_of(copy / "metrics.jsonl")
    assert after[: len(before)] == before
    assert [line["iteration"] for line in after[len(before) :]] == [4, 5, 5]
    assert "Starting training from iteration 4" in (copy / "log.txt").read_text()
    assert [row.data["iterations"] for row in read_rows([copy]).rows] == [4, 6]


def test_resume_to_fewer_iterations_than_are_trained_is_one_line(
    copy: Path, train_net: Tool, backbone_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (copy / "results.jsonl").read_bytes()
    options = {"MODEL__WEIGHTS": str(backbone_file), "SOLVER__MAX_ITER": "2"}
    assert train_net("--engine", "detectron2", "--resume", OUTPUT_DIR=str(copy), **options) == 2
    assert "4 iterations and SOLVER.MAX_ITER is 2: give 4 or more" in capsys.readouterr().err
    assert (copy / "results.jsonl").read_bytes() == before


def test_resume_of_a_finished_run_scores_it_once_more_to_the_same(
    copy: Path, finished: Path, train_net: Tool
) -> None:
    weights = str(finished / "model_final.pth")
    options = ("--engine", "detectron2", "--resume")
    begun = (copy / "config.yaml").read_text()
    began, found = re.subn(r"(?m)^  WEIGHTS: .*$", f"  WEIGHTS: {weights}", begun)
    assert found == 1
    (copy / "config.yaml").write_text(began)
    assert train_net(*options, OUTPUT_DIR=str(copy), MODEL__WEIGHTS=weights) == 0
    assert lines_of(copy / "metrics.jsonl") == lines_of(finished / "metrics.jsonl")
    first, second = (row.data for row in read_rows([copy]).rows)
    assert first["metrics"] == second["metrics"]
    assert second["init"]["sha256"] == sha256_of(weights)


def test_resume_from_other_weights_than_the_run_began_with_is_one_line(
    copy: Path, finished: Path, train_net: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    # its row would name an initialisation that the run never had
    weights = str(finished / "model_final.pth")
    options = ("--engine", "detectron2", "--resume")
    before = (copy / "config.yaml").read_text()
    assert train_net(*options, OUTPUT_DIR=str(copy), MODEL__WEIGHTS=weights) == 2
    assert "was begun with MODEL.WEIGHTS " in capsys.readouterr().err
    assert (copy / "config.yaml").read_text() == before


def test_weights_that_burst_in_the_last_step_are_never_scored_or_kept(
    train_net: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "burst"
    keys = {"SOLVER__BASE_LR": "1e30", "SOLVER__WARMUP_ITERS": "0", "SOLVER__MAX_ITER": "1"}
    assert train_net("--engine", "detectron2", OUTPUT_DIR=str(output), **keys) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "error: iteration 0: " in error and "Lower SOLVER.BASE_LR" in error
    assert not (output / "model_final.pth").exists() and not (output / "results.jsonl").exists()


def test_resume_from_a_damaged_checkpoint_is_one_line(
    copy: Path, train_net: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "model_final.pth").write_bytes(b"torn")
    assert train_net("--engine", "detectron2", "--resume", OUTPUT_DIR=str(copy)) == 2
    assert "model_final.pth is no whole checkpoint" in capsys.readouterr().err


def test_eval_only_scores_the_run_again_and_adds_no_row(copy: Path, train_net: Tool) -> None:
    before = json.loads((copy / "predictions.json").read_text())
    config = (copy / "config.yaml").read_text()
    (copy / "predictions.json").unlink()
    code = train_net("--engine", "detectron2", "--eval-only", "--resume", OUTPUT_DIR=str(copy))
    assert code == 0 and (copy / "config.yaml").read_text() == config
    assert json.loads((copy / "predictions.json").read_text()) == before
    assert len(read_rows([copy]).rows) == 1


def test_eval_only_with_resume_needs_a_checkpoint(
    train_net: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new"
    options = ("--engine", "detectron2", "--eval-only", "--resume")
    assert train_net(*options, OUTPUT_DIR=str(output)) == 2
    assert "holds no whole checkpoint" in capsys.readouterr().err
    assert not output.exists()


def test_the_standalone_engine_scores_this_model_alike(
    finished: Path, train_net: Tool, tmp_path: Path
) -> None:
    code = train_net(
        *("--engine", "standalone", "--eval-only"),
        OUTPUT_DIR=str(tmp_path / "other"),
        MODEL__WEIGHTS=str(finished / "model_final.pth"),
        SOLVER__AMP__ENABLED="False",
    )
    assert code == 0
    theirs = json.loads((finished / "predictions.json").read_text())
    ours = json.loads((tmp_path / "other" / "predictions.json").read_text())
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
        assert a["bbox"] == pytest.approx(b["bbox"], abs=1e-3)
        assert a["score"] == pytest.approx(b["score"], abs=1e-5)


def test_the_loggers_are_as_before_after_a_run(finished: Path) -> None:
    for name in ("detectron2", "fvcore", "moco_det"):
        assert logging.getLogger(name).propagate
        assert logging.getLogger(name).handlers == []


def test_voc_data_is_scored_by_the_voc_ruler_too(
    train_net: Tool, scenes: ScenesPaths, tmp_path: Path
) -> None:
    code = train_net(
        "--engine",
        "auto",
        OUTPUT_DIR=str(tmp_path / "voc"),
        DATASETS__TRAIN=repr((scenes.train,)),
        DATASETS__TEST=repr((scenes.voc_test,)),
        MODEL__MASK_ON="False",
        SOLVER__MAX_ITER="1",
        SEED="-1",
    )
    assert code == 0
    (row,) = [row.data for row in read_rows([tmp_path / "voc"]).rows]
    assert row["metrics"].keys() == {"bbox", "voc"}
    assert row["engine"]["name"] == "detectron2"
    assert row["seed"] >= 0
    assert row["init"]["name"] == "random"
    assert "voc/AP50" in lines_of(tmp_path / "voc" / "metrics.jsonl")[-1]


@pytest.mark.parametrize("last", ["2", "3"])
def test_a_loss_that_is_not_finite_is_one_line_also_in_the_last_step(
    last: str, train_net: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = train_net(
        *("--engine", "detectron2"),
        OUTPUT_DIR=str(tmp_path / "nan"),
        SOLVER__BASE_LR="1e30",
        SOLVER__WARMUP_ITERS="0",
        SOLVER__MAX_ITER=last,
    )
    message = capsys.readouterr()
    assert code == 2
    assert message.err.splitlines()[-1].startswith("error: iteration 1: ")
    assert "SOLVER.BASE_LR" in message.err
    assert "Traceback" not in message.out + message.err
    assert not (tmp_path / "nan" / "predictions.json").exists()


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ((), {"MODEL__WEIGHTS": "nowhere.pkl"}, "nowhere.pkl does not exist"),
        ((), {"MODEL__WEIGHTS": "{empty}"}, "empty.pkl"),
        ((), {"MODEL__RESNETS__DEPTH": "34", "MODEL__WEIGHTS": "{backbone}"}, "does not fit"),
        ((), {"MODEL__ROI_HEADS__NUM_CLASSES": "3"}, "NUM_CLASSES is 3"),
        ((), {"MODEL__ROI_HEADZ": "3"}, "unknown key MODEL.ROI_HEADZ"),
        ((), {"MODEL__BACKBONE__NAME": "build_nothing"}, "build_nothing"),
        ((), {"DATASETS__TRAIN": "('coco://no.json?images=.',)"}, "no.json"),
        (("--num-gpus", "2"), {}, "--num-gpus 1"),
    ],
)
def test_bad_input_is_one_line_exit_2_and_no_output(
    options: tuple[str, ...],
    changes: dict[str, str],
    message: str,
    train_net: Tool,
    backbone_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty = tmp_path / "empty.pkl"
    empty.touch()
    filled = {k: v.format(empty=empty, backbone=backbone_file) for k, v in changes.items()}
    output = tmp_path / "run"
    assert train_net("--engine", "detectron2", *options, OUTPUT_DIR=str(output), **filled) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not output.exists()


def test_a_detector_that_detectron2_cannot_resume_is_refused(
    copy: Path, train_net: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(copy / "model_final.pth", weights_only=True)
    del content["trainer"]
    torch.save(content, copy / "model_final.pth")
    assert train_net("--engine", "detectron2", "--resume", OUTPUT_DIR=str(copy)) == 2
    assert "--engine standalone" in capsys.readouterr().err


def test_run_length_masks_are_trained_as_bitmaps(
    scenes: ScenesPaths, train_net: Tool, tmp_path: Path
) -> None:
    changes = {"DATASETS__TRAIN": repr((coded_scenes(scenes, tmp_path),)), "SOLVER__MAX_ITER": "1"}
    output = tmp_path / "run"
    assert train_net("--engine", "detectron2", OUTPUT_DIR=str(output), **changes) == 0
    (row,) = lines_of(output / "results.jsonl")
    assert any("taken as bitmask" in line for line in row["warnings"])
    assert row["metrics"]["segm"]
    assert row["cost"]["backbone_flops"] > 0 and row["cost"]["image"] == [64, 96]
