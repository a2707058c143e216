from __future__ import annotations

import math
from typing import Any

import pytest

from pretrain.schedule import SolverArgs, make_schedule, schedule_warnings


def test_cosine_has_its_closed_form() -> None:
    rate = make_schedule(SolverArgs(LR=0.03, MAX_ITER=200), total=200, steps=1)
    assert rate(0) == pytest.approx(0.03)
    assert rate(100) == pytest.approx(0.015)
    assert rate(50) == pytest.approx(0.015 * (1 + math.sqrt(0.5)))


def test_the_step_schedule_drops_at_its_milestones() -> None:
    solver = SolverArgs(LR=0.03, MAX_ITER=200, SCHEDULE="step", MILESTONES=[120, 160], GAMMA=0.1)
    rate = make_schedule(solver, total=200, steps=7)
    assert [rate(i) for i in (0, 119)] == pytest.approx([0.03, 0.03])
    assert [rate(i) for i in (120, 159)] == pytest.approx([0.003, 0.003])
    assert rate(160) == pytest.approx(0.0003)


def test_the_exponential_schedule_decays_each_time_its_steps_have_passed() -> None:
    keys = {"SCHEDULE": "exponential", "GAMMA": 0.9, "GAMMA_EVERY": 62_500}
    solver = SolverArgs(LR=0.12, MAX_ITER=1_250_000, **keys)  # the MoCo paper's for IG-1B
    rate = make_schedule(solver, total=1_250_000, steps=1)
    assert [rate(i) for i in (0, 62_499)] == pytest.approx([0.12, 0.12])
    assert rate(62_500) == pytest.approx(0.108)
    assert rate(1_249_999) == pytest.approx(0.12 * 0.9**19)


def test_a_rate_by_epochs_stays_within_an_epoch_and_milestones_are_epochs() -> None:
    solver = SolverArgs(
        LR=0.03, EPOCHS=10, SCHEDULE="step", LR_UPDATE="epoch", MILESTONES=[6, 8], GAMMA=0.1
    )
    rate = make_schedule(solver, total=70, steps=7)
    rates = [rate(i) for i in (0, 41, 42, 55, 56, 69)]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003])
    rate = make_schedule(SolverArgs(LR=1.0, EPOCHS=2, LR_UPDATE="epoch"), total=14, steps=7)
    assert [rate(i) for i in (0, 6, 7)] == pytest.approx([1, 1, 0.5])


@pytest.mark.parametrize("update", ["iteration", "epoch"])
def test_a_warm_up_rises_linearly_to_the_schedule(update: str) -> None:
    keys = {"LR": 0.12, "MAX_ITER": 200, "LR_UPDATE": update}
    plain = make_schedule(SolverArgs(**keys), total=200, steps=10)
    rate = make_schedule(SolverArgs(**keys, WARMUP_ITERS=40), total=200, steps=10)
    assert rate(0) == pytest.approx(0.12 / 40)
    assert rate(19) == pytest.approx(plain(19) / 2)
    assert [rate(i) for i in range(39, 200)] == [plain(i) for i in range(39, 200)]


@pytest.mark.parametrize(
    ("keys", "total", "said"),
    [
        ({"EPOCHS": 20, "SCHEDULE": "step", "MILESTONES": [12, 20]}, 140, "MILESTONES [12, 20]"),
        ({"MAX_ITER": 9, "SCHEDULE": "exponential", "GAMMA_EVERY": 9}, 9, "GAMMA_EVERY 9"),
        ({"MAX_ITER": 40, "WARMUP_ITERS": 41}, 40, "WARMUP_ITERS, which is 41"),
        (
            {"MAX_ITER": 9, "SCHEDULE": "step", "MILESTONES": [8], "LR_UPDATE": "epoch"},
            9,
            "MILESTONES [8]",  # the rate of the second epoch is that of iteration 7
        ),
        ({"EPOCHS": 20, "SCHEDULE": "step", "MILESTONES": [12, 19]}, 140, ""),
        ({"MAX_ITER": 10, "SCHEDULE": "exponential", "GAMMA_EVERY": 9}, 10, ""),
        ({"MAX_ITER": 40, "WARMUP_ITERS": 40}, 40, ""),
        (
            {"MAX_ITER": 9, "SCHEDULE": "step", "MILESTONES": [7], "LR_UPDATE": "epoch"},
            9,
            "",
        ),
    ],
)
def test_what_the_rate_never_comes_to_is_a_warning(
    keys: dict[str, Any], total: int, said: str
) -> None:
    found = schedule_warnings(SolverArgs(**keys), total=total, steps=7)
    assert len(found) == bool(said) and said in "".join(found)
