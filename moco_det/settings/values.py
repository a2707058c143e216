"""The values that a run of either engine can mean: types, bounds, and numbers that belong together.

What is refused here would else be a traceback after the run's folder was made, or be passed over
in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import WIDEST, load_mapping


def read_beside(name: str) -> dict[str, Any]:
    """A yaml file of this package."""
    text = (resources.files("moco_det.settings") / name).read_text("utf-8")
    return load_mapping(text, name)


LIMITS: Mapping[str, Any] = read_beside("limits.yaml")
# section of limits.yaml -> what holds for each number of its keys, and in words
RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "whole": (lambda number: type(number) is int, "be whole"),
    "above_zero": (lambda number: number > 0, "be above zero"),
    "not_below_zero": (lambda number: number >= 0, "not be below zero"),
    "from_0_to_1": (lambda number: 0 <= number <= 1, "lie between 0 and 1"),
}
# Keys that may be without a value although their default has one.
MAY_BE_NONE = ("SOLVER.WEIGHT_DECAY_NORM", "SOLVER.WEIGHT_DECAY_BIAS")
LENGTHS = {
    "MODEL.PIXEL_MEAN": 3,
    "MODEL.PIXEL_STD": 3,
    "MODEL.RPN.BBOX_REG_WEIGHTS": 4,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": 4,
}
LARGEST_FLOAT32 = 3.4028234663852886e38


def check_kinds(before: Mapping[str, Any], after: Mapping[str, Any], source: str) -> None:
    """InputError where a merge left a key without a value, or words in a list of numbers.

    yacs itself compares the outermost types alone, and lets None through.
    """
    for key, value in after.items():
        default = before.get(key)
        if value is None and default is not None and key not in MAY_BE_NONE:
            raise InputError(f"{source}: {key} has no value: give it one, or take the key out")
        if key in MAY_BE_NONE and not isinstance(value, int | float | None):
            raise InputError(f"{source}: {key} is {value!r}: it is a number or nothing")
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
            if isinstance(leaf, int) and leaf.bit_length() > WIDEST:
                raise InputError(f"{key} is {value!r}: no key needs as many digits")
    for rule, (holds, wanted) in RULES.items():
        for key in LIMITS[rule]:
            if not all(map(holds, _leaves(flat[key]))):
                raise InputError(f"{key} is {flat[key]!r}: it must {wanted}")
    for key, limit in LIMITS["at_most"].items():
        if any(leaf > limit for leaf in _leaves(flat[key])):
            raise InputError(f"{key} is {flat[key]!r}: it must be at most {limit:g}")
    steps = flat["SOLVER.STEPS"]
    # two at once lower the rate twice, as detectron2 has it: very short runs come to that
    if list(steps) != sorted(steps):
        raise InputError(f"SOLVER.STEPS is {tuple(steps)}: it lists rising whole iterations")
    if not flat["INPUT.MIN_SIZE_TRAIN"]:
        raise InputError("INPUT.MIN_SIZE_TRAIN is empty: it lists whole sizes above zero")
    if flat["MODEL.BACKBONE.NAME"].endswith("_fpn_backbone") and not flat["MODEL.FPN.IN_FEATURES"]:
        raise InputError("MODEL.FPN.IN_FEATURES is empty: name the stages, as ['res4', 'res5']")
    for key, length in LENGTHS.items():
        if len(flat[key]) != length:
            raise InputError(f"{key} is {flat[key]!r}: it has {length} numbers")
    for key in ("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"):
        rows = flat[key]
        if not rows or not all(isinstance(r, (list, tuple)) and r for r in rows):
            raise InputError(f"{key} is {rows!r}: write a list for each level, as [[32], [64]]")
    for place in ("MODEL.RPN", "MODEL.ROI_HEADS"):
        _check_thresholds(flat, place)
    if flat["MODEL.RESNETS.DEPTH"] in (18, 34):
        _check_small_network(flat)
    if not flat["OUTPUT_DIR"].strip():
        raise InputError("OUTPUT_DIR is empty: name the folder that the run is written into")


def schedule_warnings(solver: Mapping[str, Any]) -> list[str]:
    """What the learning rate never comes to, by the keys of SOLVER: a line for each."""
    end, said = solver["MAX_ITER"], []
    if solver["WARMUP_ITERS"] >= end:
        said.append(
            f"SOLVER.MAX_ITER {end} ends the run before the rate has risen to SOLVER.BASE_LR: "
            f"lower SOLVER.WARMUP_ITERS, which is {solver['WARMUP_ITERS']}"
        )
    late = [step for step in solver["STEPS"] if step >= end]
    if late and solver["LR_SCHEDULER_NAME"] == "WarmupMultiStepLR":
        said.append(
            f"SOLVER.MAX_ITER {end} ends the run before the rate is lowered at "
            f"{', '.join(map(str, late))}: lower SOLVER.STEPS"
        )
    return said


def _check_small_network(flat: Mapping[str, Any]) -> None:
    # its blocks have no groups and no width of their own: both would be passed over
    only = {"NUM_GROUPS": 1, "WIDTH_PER_GROUP": 64}
    only["RES2_OUT_CHANNELS"] = flat["MODEL.RESNETS.STEM_OUT_CHANNELS"]
    for name, wanted in only.items():
        value = flat[f"MODEL.RESNETS.{name}"]
        if value != wanted:
            as_stem = ", as STEM_OUT_CHANNELS is" if name == "RES2_OUT_CHANNELS" else ""
            raise InputError(
                f"MODEL.RESNETS.{name} must be {wanted} for ResNet-18 and -34{as_stem}, not {value}"
            )


def _check_thresholds(flat: Mapping[str, Any], place: str) -> None:
    thresholds, labels = flat[f"{place}.IOU_THRESHOLDS"], flat[f"{place}.IOU_LABELS"]
    if list(thresholds) != sorted(thresholds):
        raise InputError(f"{place}.IOU_THRESHOLDS is {thresholds!r}: overlaps, rising")
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
