"""Reading the pre-training config: yaml files with `_BASE_`, KEY VALUE overrides.

Nothing is ignored: an unknown or repeated key, or a value of the wrong type, is an error that
names the key. The keys themselves are in pretrain/defaults.py.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from moco_det.foundation.errors import InputError
from pretrain.defaults import CHOICES, RANGES, check, get_cfg, lookup

__all__ = [
    "CHOICES",
    "RANGES",
    "CfgNode",
    "check",
    "flat_keys",
    "get_cfg",
    "load_config",
    "lookup",
    "plain",
]

BASE_KEY = "_BASE_"


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> CfgNode:
    """Defaults, then the yaml file, then KEY VALUE pairs; checked and frozen."""
    cfg = get_cfg()
    if path is not None:
        for key, value in _flat(_read_yaml(Path(path), ())):
            _set(cfg, key, value, str(path))
    if len(overrides) % 2:
        raise InputError(
            f"overrides come as KEY VALUE pairs: {overrides[-1]!r} has no value; options such as "
            "--resume stand before them"
        )
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        _set(cfg, key, _parse(text), "the command line", text=text)
    check(cfg)
    cfg.freeze()
    return cfg


def plain(cfg: CfgNode) -> dict[str, Any]:
    """The config as plain nested dicts."""
    return {k: plain(v) if isinstance(v, CfgNode) else v for k, v in cfg.items()}


def flat_keys(cfg: CfgNode) -> dict[str, Any]:
    """The config as one dict with dotted keys."""
    return dict(_flat(plain(cfg)))


class _StrictLoader(yaml.SafeLoader):
    """yaml's safe loader, but a key given twice in one mapping is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise InputError(f"{self.name}, line {line}: the key {key} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _read_yaml(path: Path, parents: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in parents:
        raise InputError(f"config {path} is its own {BASE_KEY}")
    try:
        with open(path, encoding="utf-8") as file:
            loaded = yaml.load(file, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise InputError(f"cannot read config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config {path} is not yaml: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InputError(f"config {path} must be a mapping of keys, not {type(loaded).__name__}")
    base = loaded.pop(BASE_KEY, None)
    if base is None:
        return loaded
    below = _read_yaml(path.parent / str(base), (*parents, path.resolve()))
    return _over(below, loaded)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _over(merged[key], value) if both else value
    return merged


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parse(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _set(cfg: CfgNode, key: str, value: Any, where: str, *, text: str | None = None) -> None:
    """Set a dotted key; `text` is what was typed, kept as it is for string keys."""
    *parents, last = key.split(".")
    node: Any = cfg
    for part in parents:
        node = node.get(part) if isinstance(node, CfgNode) else None
    if not isinstance(node, CfgNode) or last not in node or isinstance(node[last], CfgNode):
        near = difflib.get_close_matches(key, list(flat_keys(cfg)), n=1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise InputError(f"unknown key {key} in {where}{hint}")
    node[last] = _coerce(key, value, node[last], text, where)


def _coerce(key: str, value: Any, default: Any, text: str | None, where: str) -> Any:
    if isinstance(default, str):
        value = text if text is not None else value
    elif isinstance(default, float) and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError):
            value = float(value)  # yaml reads 1e-3 as a string
    elif isinstance(default, list) and isinstance(value, tuple):
        value = list(value)
    if type(value) is not type(default):
        raise InputError(
            f"{key} in {where} is {value!r}: it must be {type(default).__name__}, like {default!r}"
        )
    return value
