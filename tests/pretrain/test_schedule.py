from __future__ import annotations

import math

import pytest

from pretrain.config import load_config
from pretrain.schedule import learning_rate, rate_of


def test_cosine_has_its_closed_form() -> None:
    def rate(step: int) -> float:
        return learning_rate(step, base=0.03, total=200, schedule="cosine")

    assert rate(0) == pytest.approx(0.03)
    assert rate(100) == pytest.approx(0.015)
    assert rate(50) == pytest.approx(0.015 * (1 + math.sqrt(0.5)))


def test_the_step_schedule_drops_at_its_milestones() -> None:
    def rate(step: int) -> float:
        return learning_rate(
            step, base=0.03, total=200, schedule="step", milestones=[120, 160], gamma=0.1
        )

    assert [rate(s) for s in (0, 119)] == pytest.approx([0.03, 0.03])
    assert [rate(s) for s in (120, 159)] == pytest.approx([0.003, 0.003])
    assert rate(160) == pytest.approx(0.0003)


def test_the_exponential_schedule_decays_each_time_its_steps_have_passed() -> None:
    def rate(step: int) -> float:  # the MoCo paper's for IG-1B
        return learning_rate(
            step, base=0.12, total=1_250_000, schedule="exponential", gamma=0.9, every=62_500
        )

    assert [rate(s) for s in (0, 62_499)] == pytest.approx([0.12, 0.12])
    assert rate(62_500) == pytest.approx(0.108)
    assert rate(1_249_999) == pytest.approx(0.12 * 0.9**19)


def test_a_rate_by_epochs_stays_within_an_epoch_and_milestones_are_epochs() -> None:
    pairs = "SOLVER.LR 0.03 SOLVER.EPOCHS 10 SOLVER.SCHEDULE step SOLVER.LR_UPDATE epoch"
    cfg = load_config(None, [*pairs.split(), "SOLVER.MILESTONES", "[6, 8]"])
    rates = [rate_of(cfg, i, total=70, steps=7) for i in (0, 41, 42, 55, 56, 69)]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003])
    pairs = "SOLVER.LR 1 SOLVER.EPOCHS 2 SOLVER.LR_UPDATE epoch"
    cfg = load_config(None, pairs.split())
    assert [rate_of(cfg, i, total=14, steps=7) for i in (0, 6, 7)] == pytest.approx([1, 1, 0.5])


def test_milestones_of_a_budget_in_iterations_are_iterations() -> None:
    pairs = ["SOLVER.LR", "1", "SOLVER.MAX_ITER", "10", "SOLVER.SCHEDULE", "step"]
    cfg = load_config(None, [*pairs, "SOLVER.MILESTONES", "[6]"])
    assert [rate_of(cfg, i, total=10, steps=3) for i in (5, 6)] == pytest.approx([1, 0.1])
