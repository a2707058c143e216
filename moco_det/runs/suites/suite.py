"""A suite: a yaml file that names the settings of a comparison.

    seeds: 3                        # unless the command line says otherwise
    supervised: weights/sup.pkl     # where the supervised arm's weights are, unless given
    settings:
      - name: voc_R50_C4_24k        # of the runs' folders and the rows' config_name
        config: ../base/RCNN_C4.yaml
        set: {SOLVER: {MAX_ITER: 24000, STEPS: [18000, 22000]}}

Paths are relative to the file; `config` may also be a name of moco_det.zoo.names().
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moco_det.data import load_datasets
from moco_det.data.check import choose_masks
from moco_det.foundation import declared
from moco_det.foundation.declared import within
from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import flatten, load_yaml, nest, parse_value
from moco_det.settings.config import dump
from moco_det.settings.zoo import find_config

# of arms and settings, which become folders
NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]*"
# detectron2's own, for a config that does not say how long it trains
DEFAULT_ITERATIONS, DEFAULT_BATCH = 40000, 16
MOST_SEEDS = 1000
# What tells one run of the matrix from another; a suite must leave it alone.
RUN_KEYS = ("MODEL.WEIGHTS", "OUTPUT_DIR", "SEED")


@dataclass
class SuiteFile:
    """The keys of a suite file."""

    seeds: int = within(1, MOST_SEEDS, 5)
    supervised: str = ""
    settings: list[Any] = field(default_factory=list)


@dataclass
class SettingEntry:
    """The keys of one of its settings."""

    name: str = ""
    config: str = ""
    set: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SuiteSetting:
    """One config of a suite as a whole: `keys` are dotted names with their values."""

    name: str
    keys: Mapping[str, Any]

    @property
    def iterations(self) -> int:
        """Steps of a run."""
        return int(self.keys.get("SOLVER.MAX_ITER", DEFAULT_ITERATIONS))

    @property
    def batch(self) -> int:
        """Images per step."""
        return int(self.keys.get("SOLVER.IMS_PER_BATCH", DEFAULT_BATCH))

    @property
    def images(self) -> int:
        """Images that a run sees."""
        return self.iterations * self.batch

    @property
    def text(self) -> str:
        """The config as yaml, keys sorted: what the runs are told, and what keys them."""
        return dump(nest(self.keys))


@dataclass(frozen=True)
class Suite:
    """What a suite file says; `supervised` is None where it names no weights."""

    name: str
    seeds: int
    supervised: Path | None
    settings: tuple[SuiteSetting, ...]


def read_suite(path: Path, changes: Mapping[str, Any] | None = None) -> Suite:
    """Read a suite; `changes` are config keys that every setting takes last.

    Raises InputError naming the file and the key for whatever it does not understand.
    """
    suite = declared.read(SuiteFile, load_yaml(path), str(path))
    if not suite.settings:
        raise InputError(f"{path}: 'settings' is empty, wanted a list of at least one setting")
    settings: dict[str, SuiteSetting] = {}
    for entry in suite.settings:
        setting = read_setting(entry, path, changes or {})
        for other in settings.values():
            if setting.name == other.name:
                raise InputError(
                    f"{path}: two settings are called {other.name!r}; give each a 'name'"
                )
            if setting.text == other.text:
                names = f"{other.name} and {setting.name}"
                raise InputError(f"{path}: the settings {names} are the same config; keep one")
        settings[setting.name] = setting
    weights = path.parent / suite.supervised if suite.supervised else None
    return Suite(path.stem, suite.seeds, weights, tuple(settings.values()))


def read_setting(tree: Any, path: Path, changes: Mapping[str, Any]) -> SuiteSetting:
    """One entry of a suite's settings: its config, its own keys over it, then the changes."""
    where = f"{path}: a setting"
    entry = declared.read(SettingEntry, tree, where)
    if not entry.config:
        raise InputError(f"{where} has no 'config', a yaml file or a name of moco_det.zoo")
    name = entry.name or Path(entry.config).stem
    if not re.fullmatch(NAME, name):
        raise InputError(
            f"{where} has the 'name' {name!r}, wanted letters, digits and . _ + -, as of a folder"
        )
    over = {**flatten(entry.set), **changes}
    for key in RUN_KEYS:
        if key in over:
            raise InputError(f"{path}: {key} of {name} is set by the matrix, not by the suite")
    keys = {**flatten(load_yaml(find_config(entry.config, path.parent))), **over}
    return SuiteSetting(name, {key: keys[key] for key in keys if key not in RUN_KEYS})


def run_changes(
    data: Sequence[str] | None, pairs: Sequence[Sequence[str]], *, on_gpu: bool
) -> dict[str, Any]:
    """The config keys that a command line gives every run: its data, then KEY VALUE pairs."""
    found: dict[str, Any] = {} if on_gpu else {"MODEL.DEVICE": "cpu"}
    if data:
        train, test = data
        dataset = load_datasets([train])
        found |= {"DATASETS.TRAIN": [train], "DATASETS.TEST": [test]}
        found["MODEL.ROI_HEADS.NUM_CLASSES"] = len(dataset.classes)
        if not choose_masks(dataset, load_datasets([test], classes=dataset.classes))[0]:
            found["MODEL.MASK_ON"] = False
    return found | {key: parse_value(text) for key, text in pairs}
