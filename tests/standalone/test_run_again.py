"""Runs that stop badly, go on with something changed, or find other masks than they asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import moco_det.standalone.train as training
from moco_det.data.scenes import ScenesPaths
from moco_det.foundation.errors import InputError
from moco_det.settings.engine import RunOptions
from tests.standalone.test_run import stop_before_step
from tests.standalone.tiny import coded_scenes, on_scenes, run

RESUME = RunOptions("R18_FPN", resume=True)


@pytest.fixture
def killed(painted: ScenesPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run with a seed of its own drawing, stopped after its first checkpoint."""
    output = tmp_path / "killed"
    stop_before_step(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        run(on_scenes(painted, output, {"SEED": "-1"}), RunOptions("R18_FPN"))
    monkeypatch.undo()
    return output


def test_a_seed_that_was_drawn_stays_the_runs_own(
    killed: Path, painted: ScenesPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = torch.load(killed / "model_0000001.pth", weights_only=True)["seed"]
    seeds = []
    real = training.BatchStream
    monkeypatch.setattr(
        training, "BatchStream", lambda *a, **k: seeds.append(k["seed"]) or real(*a, **k)
    )
    run(on_scenes(painted, killed, {"SEED": "-1"}), RESUME)
    assert seeds and seeds[0] == begun  # the order of images is the one that was begun
    assert json.loads((killed / "results.jsonl").read_text())["seed"] == begun


def test_a_changed_config_a_damaged_or_foreign_checkpoint_resumes_nothing(
    killed: Path, painted: ScenesPaths
) -> None:
    changed = on_scenes(painted, killed, {"SEED": "-1", "SOLVER.BASE_LR": "0.5"})
    checkpoint, config = killed / "model_0000001.pth", (killed / "config.yaml").read_text()
    with pytest.raises(InputError, match=r"begun with SOLVER.BASE_LR 0.005, not 0.5"):
        run(changed, RESUME)
    same = on_scenes(painted, killed, {"SEED": "-1"})
    content = torch.load(checkpoint, weights_only=True)
    torch.save({"model": content["model"], "iteration": 1}, checkpoint)
    with pytest.raises(InputError, match=r"0000001.pth has no optimizer, scaler, random"):
        run(same, RESUME)
    checkpoint.write_bytes(b"torn")
    with pytest.raises(InputError, match=r"none of the 1 checkpoints in .*killed is whole"):
        run(same, RESUME)
    assert (killed / "config.yaml").read_text() == config and checkpoint.read_bytes() == b"torn"


def test_a_run_is_not_resumed_to_fewer_iterations_than_it_has(
    killed: Path, painted: ScenesPaths
) -> None:
    fewer = on_scenes(painted, killed, {"SEED": "-1", "SOLVER.MAX_ITER": "1"})
    with pytest.raises(InputError, match="2 iterations and SOLVER.MAX_ITER is 1: give 2 or more"):
        run(fewer, RESUME)
    assert not (killed / "results.jsonl").exists()
    run(on_scenes(painted, killed, {"SEED": "-1", "SOLVER.MAX_ITER": "2"}), RESUME)
    assert json.loads((killed / "results.jsonl").read_text())["iterations"] == 2


@pytest.mark.parametrize("changes", [{}, {"TEST.PRECISE_BN.ENABLED": "True"}])
def test_weights_that_burst_in_the_last_step_are_never_scored_or_kept(
    painted: ScenesPaths, tmp_path: Path, changes: dict[str, str]
) -> None:
    output = tmp_path / "out"
    keys = {"SOLVER.BASE_LR": "1e30", "SOLVER.WARMUP_ITERS": "0", "SOLVER.MAX_ITER": "1"}
    with pytest.raises(InputError, match=r"Inf or NaN in iteration 0: lower SOLVER.BASE_LR"):
        run(on_scenes(painted, output, keys | changes), RunOptions("R18_FPN"))
    assert not (output / "model_final.pth").exists() and not (output / "results.jsonl").exists()


def test_run_length_masks_are_trained_as_bitmaps_and_the_row_says_so(
    painted: ScenesPaths, tmp_path: Path
) -> None:
    data = {"DATASETS.TRAIN": repr((coded_scenes(painted, tmp_path),)), "SOLVER.MAX_ITER": "1"}
    cfg = on_scenes(painted, tmp_path / "run", data)
    assert cfg.INPUT.MASK_FORMAT == "polygon"
    assert "segm" in run(cfg, RunOptions("R18_FPN"))
    row = json.loads((tmp_path / "run" / "results.jsonl").read_text())
    (said,) = [x for x in row["warnings"] if x.startswith("INPUT.MASK_FORMAT is taken as bitmask")]
    assert said.endswith("masks of coded are run-lengths")
