"""The learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Callable

from pretrain.config import SolverArgs


def make_schedule(solver: SolverArgs, *, total: int, steps: int) -> Callable[[int], float]:
    """The rate of each of `total` iterations, with `steps` of them in an epoch.

    cosine: LR * (1 + cos(pi * i / total)) / 2 (MoCo v2 paper, Section 3); step: times GAMMA at each
    milestone passed (MoCo paper, Section 3.3); exponential: times GAMMA each time GAMMA_EVERY
    iterations have passed (MoCo paper, Section 4, for IG-1B).
    """
    base, gamma = solver.LR, solver.GAMMA
    unit = steps if solver.EPOCHS else 1  # of the milestones
    rates: dict[str, Callable[[int], float]] = {
        "cosine": lambda i: base * 0.5 * (1.0 + math.cos(math.pi * i / total)),
        "step": lambda i: base * gamma ** sum(i >= mark * unit for mark in solver.MILESTONES),
        "exponential": lambda i: base * gamma ** (i // solver.GAMMA_EVERY),
    }
    rate = rates[solver.SCHEDULE]
    if solver.LR_UPDATE == "epoch":
        return lambda iteration: rate(iteration // steps * steps)
    return rate
