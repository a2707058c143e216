"""The learning rate at every iteration."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LearningRate:
    """Factor of the base learning rate at an iteration (0-based).

    Linear or constant warm-up from ``warmup_factor`` to the value the schedule has where the
    warm-up ends (Goyal et al. 2017, section 2.2), then ``gamma`` at each of the sorted ``steps``
    or, with ``cosine_end``, half a cosine down to it.
    """

    max_iter: int
    steps: Sequence[int]
    gamma: float
    cosine_end: float | None
    warmup_iters: int
    warmup_factor: float
    warmup_method: str

    def __call__(self, iteration: int) -> float:
        warmup_iters = min(self.warmup_iters, self.max_iter)
        if iteration >= warmup_iters:
            return self.after_warmup(iteration)
        start = self.warmup_factor * self.after_warmup(0)
        if self.warmup_method == "constant":
            return start
        return start + (self.after_warmup(warmup_iters) - start) * iteration / warmup_iters

    def after_warmup(self, iteration: int) -> float:
        if self.cosine_end is None:
            return self.gamma ** bisect_right(self.steps, iteration)
        half = 0.5 * (1 + math.cos(math.pi * iteration / self.max_iter))
        return self.cosine_end + (1 - self.cosine_end) * half


class Solver:
    """An optimizer whose learning rates are a function of the iteration."""

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: LearningRate) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self.base_rates = [group["lr"] for group in optimizer.param_groups]

    def set_iteration(self, iteration: int) -> float:
        """Set the rates for an iteration; returns the base learning rate at it."""
        factor = self.schedule(iteration)
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * factor
        return float(self.optimizer.defaults["lr"]) * factor
