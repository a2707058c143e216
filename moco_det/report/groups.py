"""Which rows may be averaged: those that share all but arm, seed and weights.

A group is one setting: engine, precision, data, schedule and config. Within it an arm is one
initialisation: one name, one weights file, and one way of feeding it images (colour order, pixel
scale, stride placement), which the proof of matched arms then judges. Its trials are its seeds.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any

from moco_det.foundation.errors import InputError
from moco_det.report.statistics import (
    Comparison,
    Summary,
    compare_all,
    compare_paired,
    correct,
    summarise,
)
from moco_det.results import Row
from moco_det.results.matched import (
    IGNORED_KEYS,
    INPUT_KEYS,
    WEIGHTS_KEY,
    Matched,
    compare_configs,
    flatten_config,
)

SUPERVISED_NAMES = ("supervised", "sup")
RANDOM_NAMES = ("random",)


@dataclass(frozen=True)
class Arm:
    """One initialisation in one setting; `rows` are its trials in order of seed."""

    name: str
    sha256: str | None
    label: str
    rows: tuple[Row, ...]

    def summary(self, ruler: str, key: str) -> Summary:
        """The trials of one AP ("bbox", "segm" or "voc")."""
        return summarise(row.metric(ruler, key) for row in self.rows)

    def by_seed(self, ruler: str, key: str) -> dict[int, float | None]:
        """The trials of one AP by seed."""
        return {row.seed: row.metric(ruler, key) for row in self.rows}

    def class_summary(self, ruler: str, category: str) -> Summary:
        """The trials of one class's AP."""
        return summarise(row.per_class(ruler).get(category) for row in self.rows)


@dataclass(frozen=True)
class Group:
    """One setting and its arms: random first, supervised second, the others by name."""

    key: tuple[str, ...]
    title: str
    arms: tuple[Arm, ...]
    repeated: tuple[Row, ...]

    @property
    def first(self) -> Row:
        """Any row: they agree in everything that the key holds."""
        return self.arms[0].rows[0]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The trials of every arm."""
        return tuple(row for arm in self.arms for row in arm.rows)

    @property
    def supervised(self) -> Arm | None:
        """The arm that the others are compared with; None if absent or not one."""
        return _only(self.arms, SUPERVISED_NAMES)

    @property
    def random(self) -> Arm | None:
        """The arm without pre-training; None if absent or not one."""
        return _only(self.arms, RANDOM_NAMES)

    def against(self, arm: Arm, reference: Arm | None, ruler: str, key: str) -> Comparison | None:
        """`arm` minus `reference`; None where there is no reference or it is the arm itself.

        Where several arms are on trial (neither random nor the reference) their differences to it
        are corrected together.
        """
        if reference is None or reference is arm:
            return None
        return self._differences(reference, ruler, key)[arm.label]

    def _differences(self, reference: Arm, ruler: str, key: str) -> dict[str, Comparison]:
        """Every other arm minus the reference, by label."""
        asked = (reference.label, ruler, key)
        if asked not in self._compared:
            others = [arm for arm in self.arms if arm is not reference]
            theirs = reference.summary(ruler, key)
            made = compare_all([(arm.summary(ruler, key), theirs) for arm in others])
            by_label = {arm.label: c for arm, c in zip(others, made, strict=True)}
            trial = {arm.label for arm in self.on_trial}
            family = {label: c for label, c in by_label.items() if label in trial}
            self._compared[asked] = {**by_label, **correct(family)}
        return self._compared[asked]

    @cached_property
    def _compared(self) -> dict[tuple[str, str, str], dict[str, Comparison]]:
        return {}

    def paired(self, arm: Arm, reference: Arm, ruler: str, key: str) -> Comparison:
        """`arm` minus `reference` over the seeds that both have."""
        return compare_paired(arm.by_seed(ruler, key), reference.by_seed(ruler, key))

    @property
    def on_trial(self) -> tuple[Arm, ...]:
        """The arms that are neither random nor supervised."""
        return tuple(arm for arm in self.arms if arm_rank(arm.name) == 2)

    def has(self, ruler: str) -> bool:
        """Whether any run was measured with the ruler."""
        return any((row.data.get("metrics") or {}).get(ruler) for row in self.rows)

    def matched(self) -> Matched:
        """The proof that the arms differ only in their initialisation."""
        return compare_configs(
            {arm.label: str(arm.rows[0].data["config"]) for arm in self.arms},
            {arm.label: arm.rows[0].data["init"].get("input") for arm in self.arms},
        )


def group_rows(rows: Iterable[Row]) -> list[Group]:
    """The finished detection runs in groups, in the order in which each setting first appears.

    Of rows with the same setting, weights and seed the last one counts: a repetition is not a
    trial. The others are kept in `repeated`.
    """
    by_key: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.finished and not row.probe:
            by_key.setdefault(group_key(row), []).append(row)
    groups = []
    for key, members in by_key.items():
        last: dict[tuple[str, ...], Row] = {}
        repeated: list[Row] = []
        for row in members:
            identity = (*_arm_identity(row), str(row.seed))
            if identity in last:
                repeated.append(last[identity])
            last[identity] = row
        groups.append(
            Group(
                key=key,
                title=setting(members[0]),
                arms=_arms(last.values()),
                repeated=tuple(repeated),
            )
        )
    return groups


def group_key(row: Row) -> tuple[str, ...]:
    """What rows must share to be averaged or compared; without arm, seed and weights."""
    data = row.data
    return (
        data["task"],
        data["engine"]["name"],
        data["engine"]["version"],
        data["precision"],
        data["dataset"]["train_fingerprint"],
        data["dataset"]["test_fingerprint"],
        str(data["iterations"]),
        str(data["batch"]),
        _config_fingerprint(row),
    )


def setting(row: Row) -> str:
    """A group's heading: data, task, schedule, engine, precision."""
    data = row.data
    return (
        f"{short_name(data['dataset']['test'])} · {data['task']} · {data['config_name']} · "
        f"{data['iterations']:,} iterations × batch {data['batch']} · "
        f"{data['engine']['name']} {data['engine']['version']} · {data['precision']}"
    )


def short_name(dataset: str) -> str:
    """A data set's name for people: of an address, its last folder and its options."""
    if "://" not in dataset:
        return dataset
    path, _, options = dataset.split("://", 1)[1].partition("?")
    parts = [part for part in path.split("/") if part]
    name = parts[-1] if parts else dataset
    splits = [option[6:] for option in options.split("&") if option.startswith("split=")]
    return f"{name} ({splits[0]})" if splits else name


def apart_because(group: Group, main: Group) -> list[str]:
    """What sets a group apart from the main one: "name: main's value → this one's"."""
    ours, theirs = _identity(group.first), _identity(main.first)
    keys = [key for key in {**theirs, **ours} if ours.get(key) != theirs.get(key)]
    return [f"{key}: {theirs.get(key, '(absent)')} → {ours.get(key, '(absent)')}" for key in keys]


def _identity(row: Row) -> dict[str, str]:
    data = row.data
    named = {
        "task": data["task"],
        "engine": f"{data['engine']['name']} {data['engine']['version']}",
        "precision": data["precision"],
        "training data": f"{short_name(data['dataset']['train'])} "
        f"{data['dataset']['train_fingerprint'][:8]}",
        "test data": f"{short_name(data['dataset']['test'])} "
        f"{data['dataset']['test_fingerprint'][:8]}",
        "iterations": str(data["iterations"]),
        "batch": str(data["batch"]),
    }
    return {**named, **{key: str(value) for key, value in _shared_config(row).items()}}


def _config_fingerprint(row: Row) -> str:
    return _shared_fingerprint(_split(str(row.data["config"]))[0])


@lru_cache(maxsize=4096)
def _shared_fingerprint(text: str) -> str:
    canonical = json.dumps(_shared(parse_config(text)), sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def _shared_config(row: Row) -> dict[str, Any]:
    """The config without what arms and seeds may change."""
    return _shared(_config(row))


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    free = {WEIGHTS_KEY, *IGNORED_KEYS, *INPUT_KEYS}
    return {key: value for key, value in sorted(config.items()) if key not in free}


def _config(row: Row) -> Mapping[str, Any]:
    return parse_config(str(row.data["config"]))


def parse_config(text: str) -> Mapping[str, Any]:
    """A row's config with dotted keys; text that is no config is one value."""
    shared, own = _split(text)
    if not own:
        return _parsed(text)
    return {**_parsed(shared), **_parsed(own)}


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Mapping[str, Any]:
    try:
        return MappingProxyType(flatten_config(text))
    except InputError:
        # A row from elsewhere may hold any text; it then groups with its equals only.
        return MappingProxyType({"config": text})


# A top-level key with a value of one line, as our configs end; the rest is shared by seeds.
_OWN_LINE = re.compile(r"^(?:OUTPUT_DIR|SEED): [^|>\s][^\n]*\n(?![ \t])", re.MULTILINE)


def _split(text: str) -> tuple[str, str]:
    """(the config that seeds share, the lines of OUTPUT_DIR and SEED), so that one is read once."""
    own = _OWN_LINE.findall(text)
    if len({line.split(":")[0] for line in own}) != len(own):
        return text, ""  # a key given twice is for the parser to refuse
    return _OWN_LINE.sub("", text), "".join(own)


def _arm_identity(row: Row) -> tuple[str, str, str]:
    """(name, sha256, values of the input keys) of a row's initialisation."""
    config = _config(row)
    fed = json.dumps({key: config.get(key) for key in INPUT_KEYS}, default=str)
    return row.arm, row.data["init"]["sha256"] or "", fed


def _arms(rows: Iterable[Row]) -> tuple[Arm, ...]:
    trials: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        trials.setdefault(_arm_identity(row), []).append(row)
    names = [name for name, _, _ in trials]
    labels: list[str] = []
    arms = []
    for (name, sha256, _), members in trials.items():
        label = name if names.count(name) == 1 else f"{name} [{sha256[:8] or 'no weights'}]"
        if label in labels:
            label = f"{label} fed otherwise ({labels.count(label) + 1})"
        labels.append(label)
        members.sort(key=lambda row: row.seed)
        arms.append(Arm(name=name, sha256=sha256 or None, label=label, rows=tuple(members)))
    return tuple(sorted(arms, key=lambda arm: (arm_rank(arm.name), arm.label)))


def arm_rank(name: str) -> int:
    """Reading order: no pre-training, supervised pre-training, then what is on trial."""
    if name in RANDOM_NAMES:
        return 0
    return 1 if name in SUPERVISED_NAMES else 2


def _only(arms: tuple[Arm, ...], names: tuple[str, ...]) -> Arm | None:
    found = [arm for arm in arms if arm.name in names]
    return found[0] if len(found) == 1 else None
