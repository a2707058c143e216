"""Configs declared as dataclasses: a key's default, bounds and choices stand in its own line.

Nothing is ignored: an unknown key, and a value of another type or out of its bounds, is an
InputError that names the key. What several keys must keep together is checked in the class's own
`__post_init__`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import (
    WIDEST,
    did_you_mean,
    flatten,
    load_yaml,
    parse_value,
    read_overrides,
)

Config = TypeVar("Config")


def within(low: float, high: float, default: float) -> Any:
    """A number from `low` to `high`, both allowed."""
    return field(default=default, metadata={"bounds": (low, high)})


def at_least(low: float, default: float) -> Any:
    """A finite number from `low` on."""
    return within(low, math.inf, default)


def one_of(choices: Iterable[str], default: str) -> Any:
    """A name among `choices`."""
    return field(default=default, metadata={"choices": tuple(choices)})


def section(cls: type[Any]) -> Any:
    """Keys of a class of their own, whose names begin with that of this field and a dot."""
    return field(default_factory=cls)


def load(cls: type[Config], path: str | Path | None, overrides: Sequence[str]) -> Config:
    """The defaults, a yaml file over them, and KEY VALUE pairs over both."""
    keys = declared_keys(cls)
    tree = {} if path is None else flatten(load_yaml(path))
    given = {key: _typed(keys, key, tree[key], str(path)) for key in tree if tree[key] != {}}
    for key, text in read_overrides(overrides, keys):
        given[key] = _typed(keys, key, parse_value(text), "the command line", text)
    return _build(cls, given)


def read(cls: type[Config], tree: Any, where: str) -> Config:
    """The defaults and a mapping over them, whose empty values count as not given."""
    keys = declared_keys(cls)
    if not isinstance(tree, dict):
        raise InputError(f"{where} is {tree!r}, wanted the keys {', '.join(keys)}")
    named = {str(key): value for key, value in tree.items()}
    given = {
        key: _typed(keys, key, value, where)
        for key, value in named.items()
        if value is not None or key not in keys
    }
    try:
        return _build(cls, given)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def declared_keys(cls: type[Any], prefix: str = "") -> dict[str, Field[Any]]:
    """Each key with its dotted name, in order."""
    keys = {}
    for one in fields(cls):
        inner = one.default_factory
        if isinstance(inner, type) and is_dataclass(inner):
            keys.update(declared_keys(inner, f"{prefix}{one.name}."))
        else:
            keys[prefix + one.name] = one
    return keys


def default_of(key: Field[Any]) -> Any:
    """The default of a key."""
    return key.default if key.default_factory is MISSING else key.default_factory()


def _build(cls: type[Config], given: Mapping[str, Any], prefix: str = "") -> Config:
    arguments = {}
    for one in fields(cls):  # type: ignore[arg-type]
        name, inner = prefix + one.name, one.default_factory
        if isinstance(inner, type) and is_dataclass(inner):
            arguments[one.name] = _build(inner, given, f"{name}.")
        else:
            arguments[one.name] = given.get(name, default_of(one))
            check_value(name, arguments[one.name], one.metadata)
    return cls(**arguments)


def check_value(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    """Raise InputError where a value is not what its field's metadata allow."""
    choices, (low, high) = limits.get("choices", ()), limits.get("bounds", (0, 0))
    if choices and value not in choices:
        raise InputError(f"{name} is {value!r}: choose one of {', '.join(choices)}")
    if "bounds" in limits and (not low <= value <= high or value == math.inf):
        told = high < 1e9 or value > high
        limit = f"from {low:g} to {high:g}" if told else f"at least {low:g} and finite"
        raise InputError(f"{name} is {value}: it must be {limit}")


def _typed(keys: Mapping[str, Field[Any]], key: str, value: Any, where: str, text: str = "") -> Any:
    """`value` as the type of the key's default; a string key keeps the `text` that was typed."""
    if key not in keys:
        bare = ', without a value; text with a comma stands in "quotes"' if value is None else ""
        raise InputError(f"unknown key {key} in {where}{did_you_mean(key, keys) or bare}")
    default = default_of(keys[key])
    if isinstance(default, str) and text:
        value = text
    elif isinstance(default, float) and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            value = float(value)  # yaml reads 1e-3 as a string
    if isinstance(value, int) and value.bit_length() > WIDEST:
        raise InputError(f"{key} in {where} has {len(str(value))} digits: no key needs as many")
    if type(value) is not type(default):
        raise InputError(
            f"{key} in {where} is {value!r}: it must be {type(default).__name__}, like {default!r}"
        )
    return value
