"""A fine-tuning that is told to stop saves, and ends after the resume as one that was not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import moco_det.standalone.evaluate as evaluation
import moco_det.standalone.precise_bn as precise
import moco_det.standalone.train as training
from moco_det.data.scenes import ScenesPaths
from moco_det.foundation import stopping
from moco_det.settings.engine import RunOptions
from tests.standalone.test_run import final_state, lines_of
from tests.standalone.tiny import on_scenes, run

CHANGES = {
    "SOLVER.MAX_ITER": "3",
    "SOLVER.STEPS": "()",
    "SOLVER.CHECKPOINT_PERIOD": "100",
    "TEST.EVAL_PERIOD": "2",
    "TEST.PRECISE_BN.ENABLED": "True",
    "TEST.PRECISE_BN.NUM_ITER": "2",
    "MODEL.MASK_ON": "False",
}


@pytest.fixture(scope="module")
def whole(painted: ScenesPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, scored after the second and the last, that nobody stopped."""
    output = tmp_path_factory.mktemp("stopping") / "whole"
    run(on_scenes(painted, output, CHANGES), RunOptions("R18_FPN"))
    return output


def signalled(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    """The function, in whose call of this number this process is told to stop."""
    calls: list[None] = []

    def told(*arguments: Any, **named: Any) -> Any:
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **named)

    return told


@pytest.mark.parametrize(
    ("place", "name", "call", "stays"),
    [
        (training, "step", 1, "model_0000000.pth"),
        (precise._TrainingForward, "forward", 1, "model_0000001.pth"),
        (evaluation, "sample_or_error", 3, "model_0000001.pth"),
        (evaluation, "sample_or_error", 7, "model_0000002.pth"),  # of the last evaluation
    ],
)
def test_no_step_is_lost_and_an_evaluation_that_was_given_up_is_done_after_the_resume(
    place: Any,
    name: str,
    call: int,
    stays: str,
    whole: Path,
    painted: ScenesPaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = on_scenes(painted, tmp_path / "parts", CHANGES)
    monkeypatch.setattr(evaluation, "BATCH", 2)
    with monkeypatch.context() as patch, pytest.raises(stopping.Stopped) as stopped:
        patch.setattr(place, name, signalled(getattr(place, name), call))
        run(cfg, RunOptions("R18_FPN"))
    assert stopped.value.number == signal.SIGTERM
    assert [p.name for p in (tmp_path / "parts").glob("*.pth")] == [stays]
    torch.rand(17)  # another process starts with another state
    run(cfg, RunOptions("R18_FPN", resume=True))
    assert_same(whole, tmp_path / "parts")


def assert_same(whole: Path, parts: Path) -> None:
    assert lines_of(parts) == lines_of(whole)
    one, two = final_state(whole), final_state(parts)
    assert [n for n, t in one["model"].items() if not torch.equal(t, two["model"][n])] == []
    assert one["optimizer"]["param_groups"] == two["optimizer"]["param_groups"]
    assert torch.equal(one["random"][0], two["random"][0])
    assert (parts / "predictions.json").read_bytes() == (whole / "predictions.json").read_bytes()
    assert len((parts / "results.jsonl").read_text().splitlines()) == 1


def test_scores_that_a_killed_run_has_made_again_stand_once(
    whole: Path, painted: ScenesPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before an evaluation, killed after it was done, and resumed."""
    cfg = on_scenes(painted, tmp_path / "parts", CHANGES)
    with monkeypatch.context() as patch, pytest.raises(stopping.Stopped):
        patch.setattr(training, "step", signalled(training.step, 2))
        run(cfg, RunOptions("R18_FPN"))
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(training, "step", lambda *_: 1 / 0)
        run(cfg, RunOptions("R18_FPN", resume=True))
    run(cfg, RunOptions("R18_FPN", resume=True))
    assert_same(whole, tmp_path / "parts")
