"""Means over seeds and differences between arms, with what may be said about them.

scipy does the statistics; this file only decides when there is enough to compute from.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95

# Spread below this is rounding, not deviation between trials (AP is in percent).
_NO_SPREAD = 1e-9


@dataclass(frozen=True)
class Summary:
    """The trials of one metric: n defined values, their mean and sample standard deviation.

    `mean` is None for n = 0 and `std` for n < 2.
    """

    values: tuple[float, ...]
    mean: float | None
    std: float | None

    @property
    def n(self) -> int:
        """The number of trials in which the metric was defined."""
        return len(self.values)


@dataclass(frozen=True)
class Comparison:
    """One arm minus another; the interval is None where the trials allow none.

    `verdict` is one of "higher", "lower", "not distinguishable", "not enough trials",
    "no spread measured" (every trial gave the same number) and "not measured".
    """

    difference: float | None
    low: float | None
    high: float | None
    n: int
    n_reference: int
    verdict: str

    @property
    def decided(self) -> bool:
        """Whether the interval excludes zero."""
        return self.verdict in ("higher", "lower")

    @property
    def trials(self) -> str:
        """The numbers of trials: "n=2", or "n=2 and 3" where the arms differ."""
        if self.n == self.n_reference:
            return f"n={self.n}"
        return f"n={self.n} and {self.n_reference}"


def summarise(values: Iterable[float | None]) -> Summary:
    """Mean and sample standard deviation (n - 1) of the defined values."""
    defined = tuple(float(value) for value in values if value is not None)
    mean = float(np.mean(defined)) if defined else None
    std = float(np.std(defined, ddof=1)) if len(defined) >= 2 else None
    return Summary(values=defined, mean=mean, std=std)


def compare(arm: Summary, reference: Summary, *, confidence: float = CONFIDENCE) -> Comparison:
    """The difference of two means with Welch's interval (unequal variances)."""
    n, m = arm.n, reference.n
    if arm.mean is None or reference.mean is None:
        return Comparison(None, None, None, n, m, "not measured")
    difference = arm.mean - reference.mean
    if n < 2 or m < 2:
        return Comparison(difference, None, None, n, m, "not enough trials")
    if max(arm.std or 0.0, reference.std or 0.0) < _NO_SPREAD:
        return Comparison(difference, None, None, n, m, "no spread measured")
    low, high = _welch_interval(arm.values, reference.values, confidence)
    if low > 0:
        verdict = "higher"
    elif high < 0:
        verdict = "lower"
    else:
        verdict = "not distinguishable"
    return Comparison(difference, low, high, n, m, verdict)


def _welch_interval(
    arm: Sequence[float], reference: Sequence[float], confidence: float
) -> tuple[float, float]:
    with warnings.catch_warnings():
        # One arm without spread is legal in Welch's test; scipy warns of cancellation there.
        warnings.simplefilter("ignore", RuntimeWarning)
        result = stats.ttest_ind(arm, reference, equal_var=False)
        interval = result.confidence_interval(confidence_level=confidence)
    return float(interval.low), float(interval.high)
