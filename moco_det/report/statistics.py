"""Means over seeds and differences between arms, with what may be said about them.

Welch's t test (B. L. Welch, Biometrika 34, 1947), for few trials with a deviation pooled over arms
and the degrees of freedom of F. E. Satterthwaite (Biometrics Bulletin 2, 1946), the paired t test,
and Holm's correction (S. Holm, Scandinavian Journal of Statistics 6, 1979), over scipy's
distributions. benchmarks/verdict_errors.py measures how often they err.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from scipy import special

CONFIDENCE = 0.95

# With fewer trials than this in an arm, the deviations of the other arms are drawn upon.
FEW = 5
# What `compare` does, for the page.
RULE = (
    f"Welch's from {FEW} seeds per arm on; with fewer, the deviation is at least that pooled over "
    "the setting's arms"
)

# The share of true differences of the asked size that so many seeds would find.
POWER = 0.8
# More seeds than this nobody runs; the answer is then "more than".
MOST_SEEDS = 1000

Name = TypeVar("Name", str, int)

# Spread below this is rounding, not deviation between trials (AP is in percent).
_NO_SPREAD = 1e-9


@dataclass(frozen=True)
class Trials:
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

    @property
    def band(self) -> tuple[float, float] | None:
        """One deviation to each side of the mean; of one trial, the mean itself."""
        spread = self.std or 0.0
        return None if self.mean is None else (self.mean - spread, self.mean + spread)


@dataclass(frozen=True)
class Comparison:
    """One arm minus another; the interval is None where the trials allow none.

    `verdict` is one of "higher", "lower", "not distinguishable", "not distinguishable after
    correction", "not enough trials", "no spread measured" (every trial gave the same number),
    "nothing learned" (by either arm) and "not measured". `p` is two-sided; `p_holm` is p after
    Holm's correction for the `family` of comparisons that were made together. The interval is that
    of the single comparison.
    `deviation` is that of one trial, as the interval takes it.
    """

    difference: float | None
    low: float | None
    high: float | None
    n: int
    n_reference: int
    verdict: str
    p: float | None = None
    p_holm: float | None = None
    family: int = 1
    deviation: float | None = None

    @property
    def decided(self) -> bool:
        """Whether the difference is beyond noise, the correction included."""
        return self.verdict in ("higher", "lower")

    @property
    def tone(self) -> str:
        """How the difference looks on a page."""
        return {"higher": "gain", "lower": "loss"}.get(self.verdict, "")

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high) where the trials allow an interval."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def trials(self) -> str:
        """The numbers of trials: "n=2", or "n=2 and 3" where the arms differ."""
        if self.n == self.n_reference:
            return f"n={self.n}"
        return f"n={self.n} and {self.n_reference}"


def summarise(values: Iterable[float | None]) -> Trials:
    """Mean and sample standard deviation (n - 1) of the defined values."""
    defined = tuple(float(value) for value in values if value is not None)
    mean = float(np.mean(defined)) if defined else None
    std = float(np.std(defined, ddof=1)) if len(defined) >= 2 else None
    return Trials(values=defined, mean=mean, std=std)


def compare(
    arm: Trials, reference: Trials, setting: Iterable[Trials] = (), *, learned: bool = True
) -> Comparison:
    """The difference of two means, with an interval for unequal variances.

    It is Welch's from FEW trials per arm on. With fewer, the squared error is at least that of the
    deviation pooled over the arms of the `setting`, these two included, and the degrees of freedom
    are Satterthwaite's of the pooled variance; where the setting is two arms of equal n, that is
    Welch's interval again. Where neither arm `learned` anything, nothing is tested.
    """
    gap = None if arm.mean is None or reference.mean is None else arm.mean - reference.mean
    if gap is not None and not learned:
        return Comparison(gap, None, None, arm.n, reference.n, "nothing learned")
    return contrast([(1.0, arm), (-1.0, reference)], setting)


def contrast(terms: Sequence[tuple[float, Trials]], setting: Iterable[Trials] = ()) -> Comparison:
    """A sum of means of independent samples, each times a factor, as `compare` judges two."""
    means = [None if one.mean is None else factor * one.mean for factor, one in terms]
    known = [mean for mean in means if mean is not None]
    total = sum(known) if len(known) == len(means) else None
    few = min(one.n for _, one in terms) < FEW
    return _judged(total, terms, pool=setting if few else ())


def compare_paired(
    arm: Mapping[Any, float | None], reference: Mapping[Any, float | None]
) -> Comparison:
    """The mean difference of trials that share a seed, with the paired t interval.

    Arguments are values by seed, or seed and fold; what one side lacks is left out.
    """
    pairs = ((arm[trial], reference[trial]) for trial in sorted(set(arm) & set(reference)))
    gaps = summarise(a - b for a, b in pairs if a is not None and b is not None)
    return _judged(gaps.mean, [(1.0, gaps)])


def _judged(
    difference: float | None,
    terms: Sequence[tuple[float, Trials]],
    pool: Iterable[Trials] = (),
) -> Comparison:
    """A sum of means, each times a factor, by the t distribution."""
    n, m = terms[0][1].n, terms[-1][1].n
    if difference is None:
        return Comparison(None, None, None, n, m, "not measured")
    if any(one.std is None for _, one in terms):
        return Comparison(difference, None, None, n, m, "not enough trials")
    weight = sum(factor**2 / one.n for factor, one in terms)
    squared, freedom = _sum((f**2 * _variance(one) / one.n, one.n - 1) for f, one in terms)
    if pooled := [one for one in pool if one.n > 1]:
        squares, freedom = _sum(((one.n - 1) * _variance(one), one.n - 1) for one in pooled)
        squared = max(squared, weight * squares / sum(one.n - 1 for one in pooled))
    error, deviation = math.sqrt(squared), math.sqrt(squared / weight)
    if deviation < _NO_SPREAD:
        return Comparison(difference, None, None, n, m, "no spread measured")
    half = error * float(special.stdtrit(freedom, 0.5 + CONFIDENCE / 2))
    p = 2 * float(special.stdtr(freedom, -abs(difference) / error))
    low, high = difference - half, difference + half
    verdict = "higher" if low > 0 else "lower" if high < 0 else "not distinguishable"
    return Comparison(difference, low, high, n, m, verdict, p=p, deviation=deviation)


def _variance(trials: Trials) -> float:
    return (trials.std or 0.0) ** 2


def _sum(estimates: Iterable[tuple[float, int]]) -> tuple[float, float]:
    """The sum of (estimate, its degrees of freedom), and Satterthwaite's degrees of freedom."""
    found = list(estimates)
    total = sum(estimate for estimate, _ in found)
    return total, total**2 / (sum(estimate**2 / freedom for estimate, freedom in found) or 1.0)


def correct(comparisons: Mapping[Name, Comparison]) -> dict[Name, Comparison]:
    """Holm's correction over comparisons that were made together.

    The i-th smallest of m p-values (i from 0) is multiplied by m - i and never falls below the one
    before it. A difference whose corrected p is not below 1 - CONFIDENCE is not decided.
    """
    tested = sorted((c.p, name) for name, c in comparisons.items() if c.p is not None)
    corrected, largest = dict(comparisons), 0.0
    for rank, (p, name) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        verdict = comparisons[name].verdict
        if comparisons[name].decided and largest >= 1 - CONFIDENCE:
            verdict = "not distinguishable after correction"
        corrected[name] = replace(
            comparisons[name], p_holm=largest, family=len(tested), verdict=verdict
        )
    return corrected


def seeds_needed(difference: float, deviation: float | None, *, paired: bool = False) -> int | None:
    """Seeds per arm for a two-sided t test to find a difference, at a deviation of one trial.

    If `paired`, the deviation is that of one pair's difference. The power is POWER at the level
    1 - CONFIDENCE. None where the deviation is unknown or the difference is zero; MOST_SEEDS + 1
    stands for any larger number.
    """
    if deviation is None or not difference:
        return None
    effect = abs(difference) / deviation
    # Power grows with the number of seeds, so that the first number with enough can be bisected.
    enough = bisect_left(
        range(2, MOST_SEEDS + 1), True, key=lambda n: _power(effect, n, paired) >= POWER
    )
    return 2 + enough


def _power(effect: float, n: int, paired: bool) -> float:
    """The power of a two-sided t test with n trials per arm, the effect in deviations."""
    freedom, shift = (n - 1, effect * n**0.5) if paired else (2 * n - 2, effect * (n / 2) ** 0.5)
    if shift > 30:
        return 1.0  # cannot be told from it, and the noncentral t loses its footing there
    critical = special.stdtrit(freedom, 0.5 + CONFIDENCE / 2)
    return float(1.0 - special.nctdtr(freedom, shift, critical))
