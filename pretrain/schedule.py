"""The learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pretrain.config import CfgNode


def learning_rate(
    step: int,
    *,
    base: float,
    total: int,
    schedule: str,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    every: int = 0,
) -> float:
    """The rate of step 0..total-1, all steps counted in the same unit.

    cosine: base * (1 + cos(pi * step / total)) / 2 (MoCo v2 paper, Section 3); step: times gamma
    at each milestone passed (MoCo paper, Section 3.3); exponential: times gamma each time `every`
    steps have passed (MoCo paper, Section 4, for IG-1B).
    """
    if schedule == "cosine":
        return base * 0.5 * (1.0 + math.cos(math.pi * step / total))
    if schedule == "exponential":
        return base * gamma ** (step // every)
    return base * gamma ** sum(step >= milestone for milestone in milestones)


def rate_of(cfg: CfgNode, iteration: int, *, total: int, steps: int) -> float:
    """The rate that `cfg` gives to an iteration of `total`, with `steps` in an epoch."""
    solver = cfg.SOLVER
    in_epochs = solver.EPOCHS > 0  # then milestones are in epochs too
    at = iteration // steps * steps if solver.LR_UPDATE == "epoch" else iteration
    return learning_rate(
        at,
        base=solver.LR,
        total=total,
        schedule=solver.SCHEDULE,
        milestones=[milestone * (steps if in_epochs else 1) for milestone in solver.MILESTONES],
        gamma=solver.GAMMA,
        every=solver.GAMMA_EVERY,
    )
