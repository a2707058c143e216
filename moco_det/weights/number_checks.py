"""What must hold of a backbone's numbers, and what makes them look untrained; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from moco_det.foundation.errors import InputError

# Fresh networks of every usual initialisation stay below 1.7; 250 steps of MoCo reach 13.
UNEVEN = 2.5


def check_numbers(arrays: Mapping[str, np.ndarray], *, path: object) -> None:
    """Raise InputError unless all values are finite and all BN variances positive."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            count = int(array.size - np.isfinite(array).sum())
            raise InputError(
                f"{path}: {name} holds {count} values that are not finite: the training diverged "
                "or the file is damaged; use an earlier checkpoint"
            )
        if name.endswith("running_var") and not (array > 0).all():
            raise InputError(
                f"{path}: {name} has variances that are not positive (least {array.min():g}): "
                "the file is damaged; fetch or save it again"
            )


def untrained(arrays: Mapping[str, np.ndarray]) -> str | None:
    """Why these weights look as if nobody had trained them, or None.

    Either every norm is as it starts (weight 1, or 0 where the last one is zero-initialised,
    bias 0, mean 0, variance 1), or every convolution spreads its numbers as evenly as independent
    draws do, whatever their distribution: one step of training leaves that so, a thousand do not.
    """
    affine = [a for n, a in arrays.items() if a.ndim == 1 and n.endswith(".weight")]
    plain = all((a == 1).all() or (a == 0).all() for a in affine) and all(
        not a.any() for n, a in arrays.items() if n.endswith(".bias")
    )
    # detectron2's frozen norm starts with a variance of 1 - 1e-5
    still = all(not a.any() for n, a in arrays.items() if n.endswith("running_mean")) and all(
        np.allclose(a, 1, atol=1e-4) for n, a in arrays.items() if n.endswith("running_var")
    )
    batch_norms = any(n.endswith("running_var") for n in arrays)
    convolutions = [a for a in arrays.values() if a.ndim == 4]
    even = all(map(_is_even, convolutions))
    if not even and not (plain and still):
        return None
    signs = []
    if plain:
        signs.append(f"{'batch ' if batch_norms else ''}norm weights all 1 and biases all 0")
    if still and batch_norms:
        signs.append("running means 0 and variances 1")
    if even:
        signs.append(f"all {len(convolutions)} convolutions as even as independent draws")
        near = sum(abs(kaiming_ratio(a) - 1) < 0.03 for a in convolutions)
        if near > len(convolutions) / 2:
            signs.append(f"{near} of {len(convolutions)} convolutions with Kaiming's deviation")
    return "these look like random weights: " + ", ".join(signs)


def _is_even(weight: np.ndarray) -> bool:
    """Whether filters, and input channels, differ in their mean square no more than by chance."""
    long_enough = [axis for axis in (0, 1) if weight.shape[axis] >= 32]  # fewer say nothing
    return all(unevenness(weight, axis) < UNEVEN for axis in long_enough)


def unevenness(weight: np.ndarray, axis: int) -> float:
    """Variance of the slices' mean squares over what independent draws would have; 1 if they are.

    For n draws of x the mean of x^2 has variance (E[x^4] - E[x^2]^2) / n.
    """
    largest = float(np.abs(weight).max())
    if not largest > 0 or not math.isfinite(largest):
        return 0.0
    squares = np.square(weight / np.float32(largest))
    slices = squares.mean(axis=tuple({0, 1, 2, 3} - {axis}), dtype=np.float64)
    variance = squares.var(dtype=np.float64)
    if variance == 0:  # all of one size: no draws, and no training either
        return 0.0
    return float(slices.var(ddof=1) / (variance * weight.shape[axis] / weight.size))


def kaiming_ratio(weight: np.ndarray) -> float:
    """Standard deviation of a convolution over that of Kaiming's fan-out initialisation."""
    expected = math.sqrt(2 / (weight.shape[0] * weight.shape[2] * weight.shape[3]))
    return float(weight.std(dtype=np.float64)) / expected
