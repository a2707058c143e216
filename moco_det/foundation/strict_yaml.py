"""Yaml as configs are read: safe, and a key given twice is an error, for the last would win."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import yaml

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML was built without libyaml: the same, ten times slower
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]

from moco_det.foundation.errors import InputError


class _UniqueKeyLoader(_SafeLoader):
    """Safe yaml that refuses a key given twice, and a key that is no name."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise InputError(f"the key in line {line} is a list or a mapping: keys are names")
            if key in seen:
                raise InputError(f"duplicate yaml key {key!r} in line {line}: keep one of the two")
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_mapping(text: str, what: str) -> dict[str, Any]:
    """A yaml text of keys and values; InputError begins with `what` it is a text of."""
    try:
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except InputError as error:
        raise InputError(f"{what}: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{what} is not valid yaml: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{what}: a config is a mapping of keys, not a {type(content).__name__}")
    return content


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as one level of dotted names; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat
