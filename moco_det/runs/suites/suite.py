"""A suite: a yaml file that names the settings of a comparison.

    seeds: 3                        # unless the command line says otherwise
    supervised: weights/sup.pkl     # where the supervised arm's weights are, unless given
    settings:
      - name: voc_R50_C4_24k        # of the runs' folders and the rows' config_name
        config: ../base/RCNN_C4.yaml
        set: {SOLVER.MAX_ITER: 24000}

Paths are relative to the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moco_det.settings.config import flatten, load_yaml
from moco_det.foundation.errors import InputError

DEFAULT_SEEDS = 5
# detectron2's own default, for a config that does not say how long it trains
DEFAULT_ITERATIONS = 40000
DEFAULT_BATCH = 16

_KEYS = {"seeds", "supervised", "settings"}
_SETTING_KEYS = {"name", "config", "set"}
# What tells one run of the matrix from another; a suite must leave it alone.
RUN_KEYS = ("MODEL.WEIGHTS", "OUTPUT_DIR", "SEED")


@dataclass(frozen=True)
class Setting:
    """One config of a suite as a whole: `keys` are dotted names with their values."""

    name: str
    keys: Mapping[str, Any]

    @property
    def iterations(self) -> int:
        """Steps of a run."""
        return int(self.keys.get("SOLVER.MAX_ITER", DEFAULT_ITERATIONS))

    @property
    def batch(self) -> int:
        """Images of a step."""
        return int(self.keys.get("SOLVER.IMS_PER_BATCH", DEFAULT_BATCH))

    @property
    def tree(self) -> dict[str, Any]:
        """The keys as nested dictionaries."""
        tree: dict[str, Any] = {}
        for name, value in self.keys.items():
            *above, last = name.split(".")
            node = tree
            for part in above:
                node = node.setdefault(part, {})
            node[last] = value
        return tree

    @property
    def text(self) -> str:
        """The config as yaml, keys sorted: what the runs are told, and what keys them."""
        return yaml.safe_dump(_plain(self.tree), sort_keys=True, default_flow_style=None, width=100)


@dataclass(frozen=True)
class Suite:
    """What a suite file says; `supervised` is None where it names no weights."""

    name: str
    seeds: int
    supervised: Path | None
    settings: tuple[Setting, ...]


def read_suite(path: str | Path, changes: Mapping[str, Any] | None = None) -> Suite:
    """Read a suite; `changes` are config keys that every setting takes last.

    Raises InputError naming the file and the key for whatever it does not understand.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"suite {path} does not exist: check --suite")
    tree = load_yaml(path)
    _only(tree, _KEYS, f"{path}")
    entries = tree.get("settings")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: 'settings' must list at least one setting")
    settings = tuple(_setting(entry, path, changes or {}) for entry in entries)
    names = [setting.name for setting in settings]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: two settings are called {name!r}; give each a 'name'")
    seen: dict[str, str] = {}
    for setting in settings:
        twin = seen.setdefault(setting.text, setting.name)
        if twin != setting.name:
            raise InputError(
                f"{path}: the settings {twin} and {setting.name} are the same config; keep one"
            )
    seeds = tree.get("seeds", DEFAULT_SEEDS)
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise InputError(f"{path}: 'seeds' is {seeds!r}, wanted a number of seeds above 0")
    supervised = tree.get("supervised")
    if supervised is not None and not isinstance(supervised, str):
        raise InputError(f"{path}: 'supervised' is {supervised!r}, wanted the path of a file")
    return Suite(
        name=path.stem,
        seeds=seeds,
        supervised=path.parent / supervised if supervised else None,
        settings=settings,
    )


def _setting(entry: Any, path: Path, changes: Mapping[str, Any]) -> Setting:
    if not isinstance(entry, dict):
        raise InputError(f"{path}: a setting is {entry!r}, wanted keys and values")
    _only(entry, _SETTING_KEYS, f"{path}: a setting")
    config = entry.get("config")
    if not isinstance(config, str):
        raise InputError(f"{path}: a setting has no 'config' that names a yaml file")
    file = path.parent / config
    if not file.is_file():
        raise InputError(
            f"{path}: the 'config' {config} of a setting is not there: looked for {file}"
        )
    name = str(entry.get("name", Path(config).stem))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        raise InputError(
            f"{path}: the name {name!r} is no folder's name: use letters, digits and . _ + -"
        )
    over = entry.get("set") or {}
    if not isinstance(over, dict):
        raise InputError(f"{path}: 'set' of {name} is {over!r}, wanted keys and values")
    keys = {**flatten(load_yaml(file)), **flatten(over), **changes}
    for key in RUN_KEYS:
        keys.pop(key, None)
        if key in flatten(over) or key in changes:
            raise InputError(f"{path}: {key} of {name} is set by the matrix, not by the suite")
    return Setting(name, keys)


def _only(tree: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in tree:
        if key not in known:
            raise InputError(f"{where} has the unknown key {key!r}; known are {_listed(known)}")


def _listed(names: set[str] | Sequence[str]) -> str:
    return ", ".join(sorted(names))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
