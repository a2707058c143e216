"""Proves that two arms differ in their initialisation and in nothing else.

The arms of a comparison are fully resolved configs. Their weights must differ; the colour order,
pixel scale and stride placement may differ only where the weights' own metadata demands it;
everything else must be the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import flatten, load_mapping

IGNORED_KEYS = ("OUTPUT_DIR", "SEED")
WEIGHTS_KEY = "MODEL.WEIGHTS"
FREEZE_KEY = "MODEL.BACKBONE.FREEZE_AT"
NORM_KEY = "MODEL.RESNETS.NORM"

# config key -> key of the weights file's "input" metadata that may demand its value
INPUT_KEYS: dict[str, str] = {
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
    """The outcome: `ok` means that no forbidden key differs."""

    ok: bool
    arms: tuple[str, ...]
    keys_compared: int
    allowed: tuple[Difference, ...]
    forbidden: tuple[Difference, ...]

    def lines(self) -> list[str]:
        """The proof as text, one difference a line."""
        arms = ", ".join(self.arms)
        if self.ok:
            head = f"matched: {arms} agree in all of {self.keys_compared} keys but the allowed ones"
        else:
            head = f"NOT matched: {arms} differ in more than their initialisation"
        lines = [head]
        lines += [f"forbidden {difference}" for difference in self.forbidden]
        lines += [f"allowed {difference}" for difference in self.allowed]
        return lines


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
    arms without metadata agree with each other. OUTPUT_DIR and SEED are not compared.
    """
    if not configs:
        raise InputError("no configs to compare")
    flats = {arm: flatten_config(text, arm) for arm, text in configs.items()}
    demanded_keys = {
        key for key, field in INPUT_KEYS.items() if any(field in (m or {}) for m in inputs.values())
    }
    keys = sorted(demanded_keys.union(*flats.values()) - set(IGNORED_KEYS))
    allowed: list[Difference] = []
    forbidden: list[Difference] = []
    for key in keys:
        values = {arm: flat.get(key, _ABSENT) for arm, flat in flats.items()}
        shown = {arm: _show(value) for arm, value in values.items()}
        differs = not _all_same(list(values.values()))
        if key == WEIGHTS_KEY:
            if differs:
                allowed.append(Difference(key, shown, "the initialisation under comparison"))
        elif key in INPUT_KEYS:
            contradicted, demanded = _against_metadata(values, inputs, INPUT_KEYS[key])
            silent = [values[arm] for arm in values if arm not in demanded]
            if contradicted:
                reason = "; ".join(f"{a}'s weights demand {_show(v)}" for a, v in contradicted)
                forbidden.append(Difference(key, shown, reason))
            elif differs and not _all_same(silent):
                forbidden.append(Difference(key, shown, "no weights demand it"))
            elif differs:
                reason = f"demanded by the weights of {', '.join(demanded)}"
                allowed.append(Difference(key, shown, reason))
        elif differs:
            forbidden.append(Difference(key, shown, "must be equal"))
    for arm, flat in flats.items():
        frozen = frozen_over_random(flat)
        if frozen:
            key, reason = frozen
            forbidden.append(Difference(key, {arm: _show(flat[key])}, reason))
    return Matched(
        ok=not forbidden,
        arms=tuple(configs),
        keys_compared=len(keys),
        allowed=tuple(allowed),
        forbidden=tuple(forbidden),
    )


def frozen_over_random(flat: Mapping[str, Any]) -> tuple[str, str] | None:
    """(key, what is wrong with it) of a resolved config that freezes what nothing has filled."""
    if flat.get(WEIGHTS_KEY, "") != "":
        return None
    if flat.get(FREEZE_KEY, 0) > 0:
        return FREEZE_KEY, (
            "would freeze randomly initialised stages: give MODEL.WEIGHTS or set FREEZE_AT 0"
        )
    if flat.get(NORM_KEY) == "FrozenBN":
        return NORM_KEY, (
            "without MODEL.WEIGHTS normalises nothing and never learns to: give weights, or train "
            "a norm (SyncBN, BN)"
        )
    return None


def check_input(config: Mapping[str, Any], given: Mapping[str, Any] | None, weights: str) -> None:
    """InputError where a resolved config contradicts what its weights say they were trained on.

    `config` holds values under the keys of INPUT_KEYS, `given` is the "input" of the weights. All
    keys that contradict are named at once: of another source, weights differ in several of them.
    """
    wrong = {
        key: demanded
        for key, field in INPUT_KEYS.items()
        if (demanded := (given or {}).get(field)) is not None and not fits(config[key], demanded)
    }
    if wrong:
        has = ", ".join(f"{key} is {_show(config[key])}" for key in wrong)
        trained = " ".join(f"{key} '{_show(demanded)}'" for key, demanded in wrong.items())
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


class _Absent:
    """Stands for a key that a config does not have; equal to nothing but itself."""

    def __repr__(self) -> str:
        return "(absent)"


_ABSENT = _Absent()


def _against_metadata(
    values: Mapping[str, Any], inputs: Mapping[str, Mapping[str, Any] | None], field: str
) -> tuple[list[tuple[str, Any]], list[str]]:
    """((arm, demanded value) where the config has another value, arms that demand anything)."""
    contradicted: list[tuple[str, Any]] = []
    demanded: list[str] = []
    for arm, value in values.items():
        wanted = (inputs.get(arm) or {}).get(field)
        if wanted is None:
            continue
        demanded.append(arm)
        if not fits(value, wanted):
            contradicted.append((arm, wanted))
    return contradicted, demanded


def _all_same(values: list[Any]) -> bool:
    return all(_same(values[0], value) for value in values[1:]) if values else True


def _same(a: Any, b: Any) -> bool:
    """Equality of yaml values; floats to 1e-6 because 0.485 * 255 is 123.675 only nearly."""
    if isinstance(a, bool) or isinstance(b, bool):
        return isinstance(a, bool) and isinstance(b, bool) and a == b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return bool(abs(a - b) <= 1e-6 * max(1.0, abs(a), abs(b))) if a != b else True
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_show(item) for item in value) + "]"
    return str(value) if value != "" else "(none)"
