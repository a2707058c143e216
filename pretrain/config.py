"""Reading the pre-training config: yaml files with `_BASE_`, KEY VALUE overrides.

Nothing is ignored: an unknown or repeated key, or a value of the wrong type, is an error that
names the key. The keys themselves are in pretrain/defaults.py.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import did_you_mean, flatten, load_yaml
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


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> CfgNode:
    """Defaults, then the yaml file, then KEY VALUE pairs; checked and frozen."""
    cfg = get_cfg()
    if path is not None:
        for key, value in flatten(load_yaml(path)).items():
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
    return flatten(plain(cfg))


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
        raise InputError(f"unknown key {key} in {where}{did_you_mean(key, flat_keys(cfg))}")
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
