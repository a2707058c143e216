"""A run through the real path: what it leaves behind, and that stopping it changes nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import moco_det.standalone.train as training
from moco_det.data.scenes import ScenesPaths
from moco_det.foundation.errors import InputError
from moco_det.foundation.precision import check_device
from moco_det.results import read_rows
from moco_det.settings.engine import RunOptions
from moco_det.standalone.engine import shared_seed
from moco_det.standalone.metrics_log import Log
from tests.standalone.tiny import on_scenes, run

NAMES = {
    "iteration",
    "total_loss",
    "loss_cls",
    "loss_box_reg",
    "loss_mask",
    "loss_rpn_cls",
    "loss_rpn_loc",
    "lr",
    "time",
    "data_time",
    "eta_seconds",
    "fast_rcnn/cls_accuracy",
    "fast_rcnn/fg_cls_accuracy",
    "fast_rcnn/false_negative",
    "mask_rcnn/accuracy",
    "mask_rcnn/false_positive",
    "mask_rcnn/false_negative",
    "roi_head/num_fg_samples",
    "roi_head/num_bg_samples",
    "rpn/num_pos_anchors",
    "rpn/num_neg_anchors",
}
CLOCK = ("time", "data_time", "eta_seconds")


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the clock says."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


def final_state(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "model_final.pth", weights_only=True)
    return content


def stop_before_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The process dies in the middle of step ``number``, counted from 0."""
    real = training.step
    calls: list[None] = []

    def step(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) > number:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "step", step)


@pytest.fixture(scope="module")
def finished(painted: ScenesPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps that nobody stopped."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    metrics = run(on_scenes(painted, output), RunOptions("R18_FPN", command="the command"))
    assert set(metrics) == {"bbox", "segm"}
    return output


def test_a_run_leaves_its_files(finished: Path) -> None:
    names = {p.name for p in finished.iterdir()}
    assert {name for name in names if not name.startswith("events.out.tfevents")} == {
        "config.yaml",
        "last_checkpoint",
        "log.txt",
        "metrics.jsonl",
        "model_0000001.pth",
        "model_final.pth",
        "predictions.json",
        "results.jsonl",
    }
    first = (finished / "log.txt").read_text().splitlines()[0]
    assert "engine standalone" in first and "float32" in first


def test_every_step_and_the_score_are_logged(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 3]
    assert all(set(row) == NAMES for row in rows[:4])
    losses = [name for name in NAMES if name.startswith("loss_")]
    for row in rows[:4]:
        assert row["total_loss"] == pytest.approx(sum(row[name] for name in losses))
    # 0.005 with a warm-up of 2 from 0.001, a step at 3
    expected = [0.005 * f for f in (0.001, 0.001 + 0.999 / 2, 1, 0.1)]
    assert [row["lr"] for row in rows[:4]] == pytest.approx(expected)
    assert {"bbox/AP", "bbox/AP50", "segm/AP"} <= set(rows[4])


def test_tensorboard_has_the_numbers_of_the_log(finished: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("torch.utils.tensorboard")
    events = reader.EventAccumulator(str(finished))
    events.Reload()
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert set(events.Tags()["scalars"]) == {
        name for row in rows for name, v in row.items() if name != "iteration" and v is not None
    }
    for name in ("total_loss", "lr", "rpn/num_neg_anchors"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(r["iteration"], pytest.approx(r[name])) for r in rows if name in r]


def test_the_time_left_is_the_median_step_times_the_steps_left(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl", 5, keep_before=0)
    for i, seconds in enumerate([9.0, 2.0, 4.0]):
        log.write_step(i, {"loss_cls": 1.0}, {}, lr=0.1, seconds=seconds, waited=0.0)
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["eta_seconds"] for row in rows] == [36.0, 16.5, 8.0]


def test_the_row_says_what_was_run(finished: Path) -> None:
    (row,) = (r.data for r in read_rows([finished / "results.jsonl"]).rows)
    assert row["engine"]["name"] == "standalone" and row["precision"] == "float32"
    assert row["init"]["name"] == "random"
    assert row["init"]["weights"] is row["init"]["sha256"] is row["init"]["source"] is None
    assert (row["iterations"], row["batch"], row["seed"]) == (4, 2, 3)
    assert row["task"] == "box+mask" and row["status"] == "finished"
    assert row["output_dir"] == "." and row["command"] == "the command"
    assert row["dataset"]["train_images"] == 8 and row["dataset"]["test_images"] == 4
    assert "MAX_ITER: 4" in row["config"] and set(row["metrics"]) == {"bbox", "segm"}
    assert row["warnings"] == []


def test_the_row_says_what_the_rate_never_came_to(painted: ScenesPaths, tmp_path: Path) -> None:
    run(on_scenes(painted, tmp_path / "short", {"SOLVER.MAX_ITER": "2"}), RunOptions("R18_FPN"))
    (row,) = read_rows([tmp_path / "short" / "results.jsonl"]).rows
    risen, lowered = row.data["warnings"]
    assert "lower SOLVER.WARMUP_ITERS, which is 2" in risen and "lowered at 3" in lowered


def test_predictions_are_coco_rows_in_the_pixels_of_the_images(finished: Path) -> None:
    rows = json.loads((finished / "predictions.json").read_text())
    for row in rows:
        x, y, w, h = row["bbox"]
        assert row["image_id"] in (1, 2, 3, 4) and 1 <= row["category_id"] <= 8
        assert min(x, y) >= 0 and x + w <= 64.001 and y + h <= 64.001 and w > 0 and h > 0
        assert row["segmentation"]["size"] == [64, 64]


def test_the_same_seed_gives_the_same_run(
    finished: Path, painted: ScenesPaths, tmp_path: Path
) -> None:
    run(on_scenes(painted, tmp_path / "again"), RunOptions("R18_FPN"))
    assert lines_of(tmp_path / "again") == lines_of(finished)


@pytest.mark.parametrize("steps", [3, 1])
def test_a_run_that_was_killed_and_resumed_equals_one_that_was_not(
    finished: Path,
    painted: ScenesPaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # a checkpoint stands after step 2: killed after 3, step 3 is done again; after 1, all is
    cfg = on_scenes(painted, tmp_path / "killed")
    stop_before_step(monkeypatch, steps)
    with caplog.at_level("INFO"), pytest.raises(KeyboardInterrupt):
        run(cfg, RunOptions("R18_FPN"))
    monkeypatch.undo()
    assert not (tmp_path / "killed" / "model_final.pth").exists()
    kept = {3: f"--resume goes on from {tmp_path / 'killed' / 'model_0000001.pth'}"}
    assert caplog.messages[-1].startswith(kept.get(steps, "no checkpoint yet (SOLVER.CHECKPOINT"))
    assert (tmp_path / "killed" / "model_0000001.pth").exists() == (steps == 3)
    torch.rand(17)  # another process starts with another state
    run(cfg, RunOptions("R18_FPN", resume=True))
    assert lines_of(tmp_path / "killed") == lines_of(finished)
    one, two = final_state(finished), final_state(tmp_path / "killed")
    assert list(one["model"]) == list(two["model"])
    assert [n for n, t in one["model"].items() if not torch.equal(t, two["model"][n])] == []
    momentum, again = (s["optimizer"]["state"] for s in (one, two))
    assert all(
        torch.equal(momentum[k]["momentum_buffer"], again[k]["momentum_buffer"]) for k in momentum
    )
    assert torch.equal(one["random"][0], two["random"][0])
    predictions = [(p / "predictions.json").read_bytes() for p in (finished, tmp_path / "killed")]
    assert predictions[0] == predictions[1]


def test_a_finished_run_that_is_resumed_is_only_scored_again(
    finished: Path, painted: ScenesPaths, tmp_path: Path
) -> None:
    # killed between its last checkpoint and its row
    output = tmp_path / "again"
    shutil.copytree(finished, output, ignore=shutil.ignore_patterns("results.jsonl"))
    run(on_scenes(painted, output), RunOptions("R18_FPN", resume=True))
    assert lines_of(output) == lines_of(finished)
    (again,), (row,) = (
        [r.data for r in read_rows([folder / "results.jsonl"]).rows]
        for folder in (output, finished)
    )
    assert again["metrics"] == row["metrics"] and again["iterations"] == 4


def test_the_row_of_a_run_from_a_whole_detector_has_its_sha256(
    finished: Path, painted: ScenesPaths, tmp_path: Path
) -> None:
    weights = finished / "model_final.pth"
    changes = {"MODEL.WEIGHTS": repr(str(weights)), "SOLVER.MAX_ITER": "1"}
    run(on_scenes(painted, tmp_path / "on", changes), RunOptions("R18_FPN"))
    (row,) = (r.data for r in read_rows([tmp_path / "on" / "results.jsonl"]).rows)
    assert row["init"]["name"] == "model_final" and row["init"]["weights"] == "model_final.pth"
    assert row["init"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_a_finished_run_is_not_overwritten(finished: Path, painted: ScenesPaths) -> None:
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in finished.iterdir()}
    with pytest.raises(InputError, match=r"whole holds a finished run.*OUTPUT_DIR"):
        run(on_scenes(painted, finished), RunOptions("R18_FPN"))
    after = {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in finished.iterdir()}
    assert after == before


def test_scoring_alone_gives_the_runs_own_numbers(
    finished: Path, painted: ScenesPaths, tmp_path: Path
) -> None:
    weights = {"MODEL.WEIGHTS": repr(str(finished / "model_final.pth"))}
    config = tmp_path / "scored" / "config.yaml"  # of the run that scores are made beside
    config.parent.mkdir()
    config.write_text("SEED: 9\n")
    run(on_scenes(painted, tmp_path / "scored", weights), RunOptions("R18_FPN", eval_only=True))
    assert config.read_text() == "SEED: 9\n"
    assert (tmp_path / "scored" / "predictions.json").read_bytes() == (
        finished / "predictions.json"
    ).read_bytes()
    assert not (tmp_path / "scored" / "results.jsonl").exists()


def test_scoring_alone_of_a_run_that_has_no_checkpoint_is_bad_input(
    painted: ScenesPaths, tmp_path: Path
) -> None:
    output = tmp_path / "none"
    with pytest.raises(InputError, match=r"--resume: .*none holds no whole checkpoint"):
        run(on_scenes(painted, output), RunOptions("R18_FPN", resume=True, eval_only=True))
    assert not output.exists()


def test_scoring_a_random_detector_is_bad_input(painted: ScenesPaths, tmp_path: Path) -> None:
    output = tmp_path / "none"
    with pytest.raises(InputError, match="--eval-only would score a random detector"):
        run(on_scenes(painted, output), RunOptions("R18_FPN", eval_only=True))
    assert not output.exists()


def test_a_run_whose_proposals_overflow_names_the_way_out(
    painted: ScenesPaths, tmp_path: Path
) -> None:
    changes = {"SOLVER.BASE_LR": "1e30", "SOLVER.WARMUP_ITERS": "0"}
    with pytest.raises(InputError, match=r"Inf or NaN in iteration \d+: lower SOLVER.BASE_LR"):
        run(on_scenes(painted, tmp_path / "burst", changes), RunOptions("R18_FPN"))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("crowds alone", "objects of crowds are crowd regions .* write iscrowd 0"),
        ("nan", r"became Inf or NaN in iteration 0.*SOLVER.BASE_LR"),
    ],
)
def test_what_cannot_be_trained_on_is_bad_input(
    painted: ScenesPaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    message: str,
) -> None:
    cfg = on_scenes(painted, tmp_path / "out")
    if broken == "crowds alone":
        content = json.loads(painted.train_json.read_text())
        for row in content["annotations"]:
            row["iscrowd"] = 1
            row["segmentation"] = {"size": [64, 64], "counts": [0, 5, 64 * 64 - 5]}
        (tmp_path / "crowds.json").write_text(json.dumps(content))
        uri = f"coco://{tmp_path / 'crowds.json'}?images={painted.train_images}"
        cfg = on_scenes(painted, tmp_path / "out", {"DATASETS.TRAIN": repr((uri,))})
    else:
        nan = torch.tensor([float("nan")])
        monkeypatch.setattr(training, "step", lambda *_: (["loss_cls"], nan))
    with pytest.raises(InputError, match=message):
        run(cfg, RunOptions("R18_FPN"))
    assert (tmp_path / "out").exists() == (broken == "nan")


def test_the_device_and_the_seed() -> None:
    assert check_device("cpu") == "cpu"
    with pytest.raises(InputError, match="tpu"):
        check_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="MODEL.DEVICE cpu"):
            check_device("cuda:0")
    assert shared_seed(5) == 5
    assert shared_seed(-1) >= 0 and shared_seed(-1) != shared_seed(-1)


def test_lines_of_steps_that_are_done_again_are_dropped_and_a_torn_one_too(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    rows = [{"iteration": i, "total_loss": 1.0} for i in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"iteration": 4, "to')
    log = Log(file, 10, keep_before=3)
    log.write({"iteration": 3})
    assert [row["iteration"] for row in lines_of(tmp_path)] == [0, 1, 2, 3]


def test_long_runs_log_every_twentieth_step_and_the_last(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl", 1005, keep_before=0)
    for i in range(1005):
        log.write_step(i, {"loss_cls": 1.0}, {}, lr=0.1, seconds=2.0, waited=0.0)
    log.close()
    assert [row["iteration"] for row in lines_of(tmp_path)] == [*range(0, 1005, 20), 1004]


def test_losses_are_read_when_the_next_step_has_been_started(
    painted: ScenesPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # so a GPU has work while the host waits; steps 1 and 3 are kept, and read before that
    happened: list[str] = []
    real, losses = training.step, training.Step.losses

    def step(*arguments: Any) -> Any:
        happened.append("start")
        return real(*arguments)

    def read(self: training.Step) -> dict[str, float]:
        happened.append(f"read {self.iteration}")
        return losses(self)

    monkeypatch.setattr(training, "step", step)
    monkeypatch.setattr(training.Step, "losses", read)
    run(on_scenes(painted, tmp_path / "run"), RunOptions("R18_FPN"))
    kept_after_two = ["start", "start", "read {}", "read {}"]
    assert happened == [
        line.format(number)
        for first in (0, 2)
        for line, number in zip(kept_after_two, (0, 0, first, first + 1), strict=True)
    ]
