"""How often the report's verdict errs with few seeds, beside the tests it could have used.

    python benchmarks/verdict_errors.py

Draws pages of arms that all have the same AP, with the spreads that detectors here were measured
to have, and counts the differences that each test calls real: per comparison with supervised
(the worst one), and per page (any arm on trial against supervised or against random, each after
Holm's correction). Power is the share found of a true difference of 4 deviations. Each cell is
"comparison / page / power" in percent over pages of 3, 4 and 5 arms: the worst errors, and the
mean power.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import special

from moco_det.report.statistics import CONFIDENCE, FEW, compare, summarise

Array = NDArray[np.float64]

SHIFT = 4.0  # of the arm on trial in the draws for power, in deviations of its comparison
# arms -> the deviation of each: random, supervised, then those on trial
SPREADS: dict[str, Callable[[int], list[float]]] = {
    "all 0.5": lambda arms: [0.5] * arms,
    "0.1 to 1.0, even steps": lambda arms: list(np.linspace(0.1, 1.0, arms)),
    "random 0.01, others 0.5": lambda arms: [0.01] + [0.5] * (arms - 1),
    "supervised 0.1, others 0.7": lambda arms: [0.7, 0.1] + [0.7] * (arms - 2),
    "supervised 1.0, others 0.2": lambda arms: [0.2, 1.0] + [0.2] * (arms - 2),
    "one on trial 1.0, others 0.2": lambda arms: [0.2] * (arms - 1) + [1.0],
}
METHODS = ("Welch", "pooled", "floor", "moderated", "used")


def p_values(runs: Array, reference: int) -> dict[str, Array]:
    """Two-sided p by method for every arm minus the reference; runs and p are [page, arm, ...]."""
    n = runs.shape[2]
    variance = runs.var(axis=2, ddof=1)
    gap = runs.mean(axis=2)
    gap = np.abs(gap - gap[:, [reference]])
    pair, freedom = _combined(np.stack([variance, variance[:, [reference]] + 0 * variance]), n - 1)
    total, pooled_freedom = _combined(np.moveaxis(variance, 1, 0), n - 1)
    pooled = 2 * total[:, None] / runs.shape[1] + 0 * pair
    # Each arm's variance moved halfway, at n = 2 two thirds, to the pooled one.
    near = (2 * pooled + (n - 1) * pair) / (n + 1)
    all_degrees = runs.shape[1] * (n - 1)
    used = np.maximum(pair, pooled), pooled_freedom[:, None]
    errors = {
        "Welch": (pair, freedom),
        "pooled": (pooled, all_degrees),
        "floor": (np.maximum(pair, pooled), all_degrees),
        "moderated": (near, n + 1),
        "used": used if n < FEW else (pair, freedom),
    }
    return {
        name: 2 * special.stdtr(degrees, -gap / np.sqrt(square / n))
        for name, (square, degrees) in errors.items()
    }


def _combined(variances: Array, degrees: int) -> tuple[Array, Array]:
    """The sum over the first axis, and Satterthwaite's degrees of freedom."""
    total = variances.sum(axis=0)
    return total, total**2 / (variances**2 / degrees).sum(axis=0)


def rates(runs: Array, shift: float) -> dict[str, Array]:
    """Per method the shares (per comparison, per page, power)."""
    level, moved = 1 - CONFIDENCE, runs.copy()
    moved[:, -1] += shift
    to_supervised, to_random, found = p_values(runs, 1), p_values(runs, 0), p_values(moved, 1)
    shares = {}
    for name in METHODS:
        p, on_trial = to_supervised[name], runs.shape[1] - 2
        single = np.delete((p < level).mean(axis=0), 1).max()
        # The smallest p of a family decides by Holm whether any is called.
        smallest = np.minimum(p[:, 2:].min(axis=1), to_random[name][:, 2:].min(axis=1))
        page = (on_trial * smallest < level).mean()
        shares[name] = np.array([single, page, (found[name][:, -1] < level).mean()])
    return shares


def check(runs: Array) -> None:
    """The test called "used" is the report's own."""
    p = p_values(runs, 1)["used"]
    for page, expected in zip(runs, p, strict=True):
        arms = [summarise(values) for values in page]
        made = [compare(arm, arms[1], arms).p for arm in arms[2:]]
        np.testing.assert_allclose(np.array(made, dtype=float), expected[2:], rtol=1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=20000, help="pages per cell (20000)")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    print("| n | deviations |", " | ".join(METHODS), "|")
    print("|--:|---|" + "--:|" * len(METHODS))
    for n in range(2, FEW + 1):
        for label, deviations in SPREADS.items():
            by_size = []
            for arms in (3, 4, 5):
                spread = np.array(deviations(arms))
                runs = rng.normal(size=(args.pages, arms, n)) * spread[:, None]
                check(runs[:20])
                shift = SHIFT * np.sqrt((spread[1] ** 2 + spread[-1] ** 2) / 2)
                by_size.append(rates(runs, shift))
            cells = []
            for name in METHODS:
                single, page, power = 100 * np.array([one[name] for one in by_size]).T
                cells.append(f"{single.max():.0f} / {page.max():.0f} / {power.mean():.0f}")
            print(f"| {n} | {label} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
