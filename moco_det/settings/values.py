"""The values that a run of either engine can mean: types, bounds, and numbers that belong together.

What is refused here would else be a traceback after the run's folder was made, or be passed over
in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import load_mapping


def read_beside(name: str) -> dict[str, Any]:
    """A yaml file of this package."""
    text = (resources.files("moco_det.settings") / name).read_text("utf-8")
    return load_mapping(text, name)


LIMITS: Mapping[str, Any] = read_beside("limits.yaml")
# Keys that may be without a value although their default has one.
MAY_BE_NONE = ("SOLVER.WEIGHT_DECAY_NORM", "SOLVER.WEIGHT_DECAY_BIAS")
LARGEST_FLOAT32 = 3.4028234663852886e38


def check_kinds(before: Mapping[str, Any], after: Mapping[str, Any], source: str) -> None:
    """InputError where a merge left a key without a value, or words in a list of numbers.

    yacs itself compares the outermost types alone, and lets None through.
    """
    for key, value in after.items():
        default = before.get(key)
        if value is None and default is not None and key not in MAY_BE_NONE:
            raise InputError(f"{source}: {key} has no value: give it one, or take the key out")
        kind = _kind(default)
        wrong = [] if kind is None else [leaf for leaf in _leaves(value) if _kind([leaf]) != kind]
        if wrong:
            raise InputError(f"{source}: {key} is {value!r}: {wrong[0]!r} is no {kind}")


def check_bounds(flat: Mapping[str, Any]) -> None:
    """InputError for a number, or numbers side by side, that no run can mean."""
    for key, value in flat.items():
        for leaf in _leaves(value):
            if isinstance(leaf, float) and not abs(leaf) <= LARGEST_FLOAT32:
                raise InputError(f"{key} is {value!r}: {leaf} is no finite number of float32")
    for key in LIMITS["above_zero"]:
        if not flat[key] > 0:
            raise InputError(f"{key} is {flat[key]!r}: it must be above zero")
    for key in LIMITS["not_below_zero"]:
        if flat[key] < 0:
            raise InputError(f"{key} is {flat[key]!r}: it must not be below zero")
    for key, limit in LIMITS["at_most"].items():
        if flat[key] > limit:
            raise InputError(f"{key} is {flat[key]!r}: it must be at most {limit:g}")
    for key in LIMITS["from_0_to_1"]:
        if not 0 <= flat[key] <= 1:
            raise InputError(f"{key} is {flat[key]!r}: it must lie between 0 and 1")
    _check_sizes(flat)
    _check_pixels(flat)
    _check_small_networks(flat)
    for place in ("MODEL.RPN", "MODEL.ROI_HEADS"):
        _check_thresholds(flat, place)
    for name in ("SIZES", "ASPECT_RATIOS"):
        key = f"MODEL.ANCHOR_GENERATOR.{name}"
        rows = flat[key]
        if not rows or not all(isinstance(r, (list, tuple)) and r for r in rows):
            raise InputError(f"{key} is {rows!r}: write a list for each level, as [[32], [64]]")
        if not all(leaf > 0 for leaf in _leaves(rows)):
            raise InputError(f"{key} is {rows!r}: every one must be above zero")
    if not flat["OUTPUT_DIR"].strip():
        raise InputError("OUTPUT_DIR is empty: name the folder that the run is written into")


def _check_sizes(flat: Mapping[str, Any]) -> None:
    sizes = flat["INPUT.MIN_SIZE_TRAIN"]
    if not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise InputError(f"INPUT.MIN_SIZE_TRAIN is {sizes!r}: it lists whole sizes above zero")
    steps = list(flat["SOLVER.STEPS"])
    # two at once lower the rate twice, as detectron2 has it: very short runs come to that
    rising = all(a <= b for a, b in zip(steps, steps[1:], strict=False))
    if not all(type(step) is int and step > 0 for step in steps) or not rising:
        raise InputError(f"SOLVER.STEPS is {tuple(steps)}: it lists rising whole iterations")
    if flat["MODEL.BACKBONE.NAME"].endswith("_fpn_backbone") and not flat["MODEL.FPN.IN_FEATURES"]:
        raise InputError("MODEL.FPN.IN_FEATURES is empty: name the stages, as ['res4', 'res5']")


def _check_pixels(flat: Mapping[str, Any]) -> None:
    for key in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"):
        if len(flat[key]) != 3:
            raise InputError(f"{key} is {flat[key]!r}: it has one number for each of 3 channels")
    if not all(value > 0 for value in flat["MODEL.PIXEL_STD"]):
        std = flat["MODEL.PIXEL_STD"]
        raise InputError(f"MODEL.PIXEL_STD is {std!r}: pixels are divided by it: above zero")


def _check_small_networks(flat: Mapping[str, Any]) -> None:
    depth = flat["MODEL.RESNETS.DEPTH"]
    if depth not in (18, 34):
        return
    stem, res2 = flat["MODEL.RESNETS.STEM_OUT_CHANNELS"], flat["MODEL.RESNETS.RES2_OUT_CHANNELS"]
    if res2 != stem:
        raise InputError(
            f"MODEL.RESNETS.RES2_OUT_CHANNELS must be {stem} for ResNet-18 and -34, as "
            f"STEM_OUT_CHANNELS is, not {res2}"
        )
    # their blocks have no groups and no width of their own: both would be passed over
    for name, only in (("NUM_GROUPS", 1), ("WIDTH_PER_GROUP", 64)):
        value = flat[f"MODEL.RESNETS.{name}"]
        if value != only:
            raise InputError(
                f"MODEL.RESNETS.{name} must be {only} for ResNet-18 and -34, not {value}"
            )


def _check_thresholds(flat: Mapping[str, Any], place: str) -> None:
    thresholds, labels = flat[f"{place}.IOU_THRESHOLDS"], flat[f"{place}.IOU_LABELS"]
    rising = all(a <= b for a, b in zip(thresholds, thresholds[1:], strict=False))
    if not rising or not all(0 < t <= 1 for t in thresholds):
        raise InputError(
            f"{place}.IOU_THRESHOLDS is {thresholds!r}: overlaps above 0 and up to 1, rising"
        )
    if len(labels) != len(thresholds) + 1 or not set(labels) <= {-1, 0, 1}:
        raise InputError(
            f"{place}.IOU_LABELS is {labels!r}: it has one of -1, 0 and 1 per interval between "
            f"IOU_THRESHOLDS {thresholds!r}, that is {len(thresholds) + 1}"
        )


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _kind(value: Any) -> str | None:
    """'number' or 'word' for a list of one of them; None for all else, an empty list too."""
    if not isinstance(value, (list, tuple)):
        return None
    leaves: Sequence[Any] = list(_leaves(value))
    if leaves and all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in leaves):
        return "number"
    return "word" if leaves and all(isinstance(x, str) for x in leaves) else None
