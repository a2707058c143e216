"""Proves that two arms differ in their initialisation and in nothing else.

The arms of a comparison are fully resolved configs. Their weights must differ; the colour order,
pixel scale and stride placement may differ only where the weights' own metadata demands it;
everything else must be the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import flatten, load_mapping

IGNORED_KEYS = ("MODEL.DEVICE", "OUTPUT_DIR", "SEED", "WANDB")
WEIGHTS_KEY = "MODEL.WEIGHTS"
FREEZE_KEY = "MODEL.BACKBONE.FREEZE_AT"
NORM_KEY = "MODEL.RESNETS.NORM"
BUILDER_KEY, TIMM_BACKBONE = "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"

# config key -> key of the weights file's "input" metadata that may demand its value
INPUT_KEYS = {
    "MODEL.PIXEL_MEAN": "mean",
    "MODEL.PIXEL_STD": "std",
    "INPUT.FORMAT": "format",
    "MODEL.RESNETS.STRIDE_IN_1X1": "stride_in_1x1",
}


@dataclass(frozen=True)
class Difference:
    """One config key whose value the arms do not share, or that contradicts the weights."""

    key: str
    values: Mapping[str, str]
    reason: str

    def __str__(self) -> str:
        values = ", ".join(f"{arm}={value}" for arm, value in self.values.items())
        return f"{self.key}: {values} ({self.reason})"


@dataclass(frozen=True)
class Matched:
    """The outcome: the arms are matched if no forbidden key differs."""

    arms: tuple[str, ...]
    keys_compared: int
    allowed: tuple[Difference, ...]
    forbidden: tuple[Difference, ...]

    @property
    def ok(self) -> bool:
        return not self.forbidden

    @property
    def head(self) -> str:
        """The outcome in one line."""
        arms = ", ".join(self.arms)
        if not self.ok:
            return f"NOT matched: {arms} differ in more than their initialisation"
        return f"matched: {arms} agree in all of {self.keys_compared} keys but the allowed ones"

    def lines(self) -> list[str]:
        """The proof as text, one line per difference."""
        forbidden = [f"forbidden {difference}" for difference in self.forbidden]
        return [self.head, *forbidden, *(f"allowed {difference}" for difference in self.allowed)]


def flatten_config(text: str, name: str = "config") -> dict[str, Any]:
    """A resolved yaml text as {dotted key: value}; InputError names `name` and the fault."""
    return flatten(load_mapping(text, f"the config of {name}"))


def compare_configs(
    configs: Mapping[str, str], inputs: Mapping[str, Mapping[str, Any] | None]
) -> Matched:
    """Compare the resolved yaml texts of the arms, given each arm's weights "input" metadata.

    `inputs` holds, for each arm, the "input" object of its weights file (format, mean, std on the
    0..255 scale, stride_in_1x1), or None where there are no weights or they say nothing. An input
    key may differ between arms if every arm with metadata has the value that it demands and the
    arms without metadata agree with each other. IGNORED_KEYS are not compared.
    """
    flats = {arm: flatten_config(text, arm) for arm, text in configs.items()}
    demands = {arm: _demanded(inputs.get(arm)) for arm in configs}
    keys = sorted(set().union(*flats.values(), *demands.values()).difference(IGNORED_KEYS))
    allowed: list[Difference] = []
    forbidden: list[Difference] = []
    for key in keys:
        values = {arm: flat.get(key, _ABSENT) for arm, flat in flats.items()}
        wanted = {arm: demand[key] for arm, demand in demands.items() if key in demand}
        wrong = [arm for arm, value in wanted.items() if not fits(values[arm], value)]
        silent = [value for arm, value in values.items() if arm not in wanted]
        verdict, reason = forbidden, "must be equal"
        if wrong:
            reason = "; ".join(f"{arm}'s weights demand {_show(wanted[arm])}" for arm in wrong)
        elif _all_same(list(values.values())):
            continue
        elif key == WEIGHTS_KEY:
            verdict, reason = allowed, "the initialisation under comparison"
        elif wanted and _all_same(silent):
            verdict, reason = allowed, f"demanded by the weights of {', '.join(wanted)}"
        elif key in INPUT_KEYS:
            reason = "no weights demand it"
        shown = {arm: _show(value) for arm, value in values.items()}
        verdict.append(Difference(key, shown, reason))
    for arm, flat in flats.items():
        if frozen := frozen_over_random(flat):
            key, reason = frozen
            forbidden.append(Difference(key, {arm: _show(flat[key])}, reason))
    return Matched(tuple(configs), len(keys), tuple(allowed), tuple(forbidden))


def without_fold(text: str) -> str:
    """Names of data sets, or a config that has them, without the number of the fold."""
    return re.sub(r"[?&]fold=\d+", "", text)


def frozen_over_random(flat: Mapping[str, Any]) -> tuple[str, str] | None:
    """(key, what is wrong with it) of a resolved config that freezes what nothing has filled."""
    if flat.get(WEIGHTS_KEY, "") != "":
        return None
    if flat.get(FREEZE_KEY, 0) > 0:
        return FREEZE_KEY, (
            "would freeze randomly initialised stages: give MODEL.WEIGHTS or set FREEZE_AT 0"
        )
    timm = flat.get(BUILDER_KEY) == TIMM_BACKBONE
    key = "MODEL.TIMM.NORM" if timm else NORM_KEY
    if flat.get(key) == "FrozenBN":
        return key, (
            "without MODEL.WEIGHTS normalises nothing and never learns to: give weights, or train "
            "a norm (SyncBN, BN)"
        )
    return None


def check_input(config: Mapping[str, Any], given: Mapping[str, Any] | None, weights: str) -> None:
    """InputError where a resolved config contradicts what its weights say they were trained on.

    `config` holds values under the keys of INPUT_KEYS, `given` is the "input" of the weights. All
    keys that contradict are named at once: of another source, weights differ in several of them.
    """
    demanded = _demanded(given)
    wrong = {key: value for key, value in demanded.items() if not fits(config[key], value)}
    if wrong:
        has = ", ".join(f"{key} is {_show(config[key])}" for key in wrong)
        trained = " ".join(f"{key} '{_show(value)}'" for key, value in wrong.items())
        raise InputError(
            f"{has}, but {weights} was trained with {trained}: set that, or use weights of this "
            "input"
        )


def fits(here: Any, demanded: Any) -> bool:
    """Whether a config's input is the weights': pixel statistics to 0.01 of 255, others exactly."""
    if isinstance(demanded, (list, tuple)) and isinstance(here, (list, tuple)):
        return len(here) == len(demanded) and all(
            abs(a - b) < 1e-2 for a, b in zip(here, demanded, strict=True)
        )
    return _same(here, demanded)


# Stands for a key that a config does not have.
_ABSENT = "(absent)"


def _demanded(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """{config key: value} of what a weights file's "input" demands."""
    fields = {key: (given or {}).get(field) for key, field in INPUT_KEYS.items()}
    return {key: value for key, value in fields.items() if value is not None}


def _all_same(values: Sequence[Any]) -> bool:
    return all(_same(values[0], value) for value in values[1:])


def _same(a: Any, b: Any) -> bool:
    """Equality of yaml values; floats to 1e-6 because 0.485 * 255 is 123.675 only nearly."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return isinstance(a, bool) == isinstance(b, bool) and math.isclose(
            a, b, rel_tol=1e-6, abs_tol=1e-6
        )
    return bool(a == b)


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_show, value)) + "]"
    return str(value) if value != "" else "(none)"
