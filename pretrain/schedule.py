"""The learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from moco_det.foundation.declared import at_least, one_of, within
from moco_det.foundation.errors import InputError


@dataclass(frozen=True)
class SolverArgs:
    """SOLVER.*: SGD, its schedule, and its budget by exactly one of EPOCHS and MAX_ITER."""

    BATCH: int = at_least(2, 256)  # over all processes
    ACCUMULATE: int = at_least(1, 1)  # parts of a process's share, computed one after another
    LR: float = at_least(0, 0.03)
    MOMENTUM: float = within(0, 1, 0.9)
    WEIGHT_DECAY: float = at_least(0, 1e-4)
    EPOCHS: int = at_least(0, 0)
    MAX_ITER: int = at_least(0, 0)
    SCHEDULE: str = one_of(("cosine", "step", "exponential"), "cosine")
    # For step: where the rate is multiplied by GAMMA, in epochs or iterations as the budget is.
    MILESTONES: list[int] = field(default_factory=list)
    GAMMA: float = within(0, 1, 0.1)
    # For exponential: the rate is multiplied by GAMMA each time so many iterations have passed.
    GAMMA_EVERY: int = at_least(0, 0)
    LR_UPDATE: str = one_of(("iteration", "epoch"), "iteration")  # how often the rate changes
    WARMUP_ITERS: int = at_least(0, 0)  # the rate rises linearly over so many

    def __post_init__(self) -> None:
        if (self.EPOCHS > 0) == (self.MAX_ITER > 0):
            raise InputError(
                f"SOLVER.EPOCHS is {self.EPOCHS} and SOLVER.MAX_ITER is {self.MAX_ITER}: give the "
                "budget by one of the two and set the other to 0"
            )
        marks = self.MILESTONES
        if not all(type(mark) is int and mark > 0 for mark in marks) or marks != sorted(set(marks)):
            raise InputError(
                f"SOLVER.MILESTONES is {marks}: it must be whole numbers above 0, each above the "
                "one before, such as [120, 160]"
            )
        for schedule, key, value in (
            ("step", "MILESTONES", marks),
            ("exponential", "GAMMA_EVERY", self.GAMMA_EVERY),
        ):
            if (schedule == self.SCHEDULE) != bool(value):
                raise InputError(
                    f"SOLVER.SCHEDULE is {self.SCHEDULE} with SOLVER.{key} {value}: {key} belongs "
                    f"to the {schedule} schedule, and it needs it"
                )


def make_schedule(solver: SolverArgs, *, total: int, steps: int) -> Callable[[int], float]:
    """The rate of each of `total` iterations, with `steps` of them in an epoch.

    cosine: LR * (1 + cos(pi * i / total)) / 2 (MoCo v2 paper, Section 3); step: times GAMMA at each
    milestone passed (MoCo paper, Section 3.3); exponential: times GAMMA each time GAMMA_EVERY
    iterations have passed (MoCo paper, Section 4, for IG-1B). Each is multiplied by
    (i + 1) / WARMUP_ITERS over the first WARMUP_ITERS iterations (Goyal et al. 2017, Section 2.2).
    """
    base, gamma, warmup = solver.LR, solver.GAMMA, solver.WARMUP_ITERS
    unit = steps if solver.EPOCHS else 1  # of the milestones
    rates: dict[str, Callable[[int], float]] = {
        "cosine": lambda i: base * 0.5 * (1.0 + math.cos(math.pi * i / total)),
        "step": lambda i: base * gamma ** sum(i >= mark * unit for mark in solver.MILESTONES),
        "exponential": lambda i: base * gamma ** (i // solver.GAMMA_EVERY),
    }
    rate, held = rates[solver.SCHEDULE], steps if solver.LR_UPDATE == "epoch" else 1
    return lambda i: rate(i // held * held) * min(1.0, (i + 1) / max(1, warmup))


def schedule_warnings(solver: SolverArgs, *, total: int, steps: int) -> list[str]:
    """What the rate never comes to in `total` iterations: a line for each."""
    unit, held = (steps if one else 1 for one in (solver.EPOCHS, solver.LR_UPDATE == "epoch"))
    end = (total - 1) // held * held  # the last iteration at which the rate changes
    lowered = {
        f"MILESTONES {solver.MILESTONES}": unit * max([0, *solver.MILESTONES]),
        f"GAMMA_EVERY {solver.GAMMA_EVERY}": solver.GAMMA_EVERY,
    }
    said = [
        f"{total} iterations end before the rate is lowered by the last of SOLVER.{key}: lower it"
        for key, last in lowered.items()
        if last > end
    ]
    warmup = solver.WARMUP_ITERS
    if warmup > total:
        said.append(
            f"{total} iterations end before the rate has risen to SOLVER.LR: lower "
            f"SOLVER.WARMUP_ITERS, which is {warmup}"
        )
    return said
