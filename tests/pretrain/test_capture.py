"""A captured step is the step, for every method; here the graph is one that runs the code again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain import capture, train
from pretrain.config import PretrainConfig, load_config
from pretrain.loop import Loop
from tests.pretrain.test_resume import EVERY, QUICK, assert_same_run, stop_at

Results = dict[str, Tensor]


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Captures on a device without graphs; an entry per replay."""
    replays: list[None] = []

    def record(function: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
        results: Results = {}  # a capture runs nothing

        def replay() -> None:
            replays.append(None)
            for name, value in function().items():
                results[name] = results[name].copy_(value) if name in results else value

        return replay, results

    monkeypatch.setattr(capture, "record", record)
    build = train.build_loop

    def build_captured(cfg: PretrainConfig, device: torch.device, **named: Any) -> Loop:
        loop = build(cfg, device, **named)
        if Path(cfg.OUTPUT_DIR).name != "plain":
            loop.capture()
        return loop

    monkeypatch.setattr(train, "build_loop", build_captured)
    return replays


def run_of(tiny: list[str], pairs: list[str], output: Path) -> PretrainConfig:
    every = ["LOG_EVERY", "3", "CHECKPOINT_EVERY", "2", "SOLVER.MAX_ITER", "6"]
    return load_config(QUICK, [*tiny, *every, *pairs, "OUTPUT_DIR", str(output)])


@pytest.mark.parametrize("method", EVERY)
def test_a_captured_run_ends_where_a_plain_one_does(
    method: str, tiny: list[str], tmp_path: Path, replayed: list[None]
) -> None:
    # rates that a float32 tensor holds exactly, as a float64 number does
    pairs = [*EVERY[method], "SOLVER.LR", "0.0625", "SOLVER.SCHEDULE", "step"]
    pairs += ["SOLVER.MILESTONES", "[4]", "SOLVER.GAMMA", "0.5"]
    train.train(run_of(tiny, pairs, tmp_path / "plain"))
    assert not replayed
    train.train(run_of(tiny, pairs, tmp_path / "captured"))
    assert 0 < len(replayed) <= 6 - capture.FIRST
    assert_same_run(tmp_path / "plain", tmp_path / "captured")


def test_a_captured_run_goes_on_exactly(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replayed: list[None]
) -> None:
    pairs = EVERY["nce"]
    train.train(run_of(tiny, pairs, tmp_path / "captured"))
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            train.train(run_of(tiny, pairs, tmp_path / "parts"))
    train.train(run_of(tiny, pairs, tmp_path / "parts"), resume=True)
    assert_same_run(tmp_path / "captured", tmp_path / "parts")
    assert replayed


def test_a_step_that_python_still_decides_about_is_not_captured() -> None:
    def compute(batch: Any) -> Results:
        return {"loss": torch.zeros(())}

    step = capture.CapturedStep(compute, settled=lambda: False)
    for _ in range(capture.FIRST + 2):
        assert step(None) is not None  # type: ignore[arg-type]
    assert step.replay is None
