"""Which rows may be averaged: those that share all but arm, seed and weights.

A group is one setting: engine, precision, data, schedule and config, or for probes the protocol and
its settings. Within it an arm is one initialisation: one name, one weights file or all starts of a
pre-training made here, and one way of feeding it images (colour order, pixel scale, stride
placement), which the proof of matched arms then judges. Its trials are its starts, its seeds and
the folds of one share of the data. An arm of probes is one name with one way and one number of
steps of pre-training; its trials differ in the probed weights or in the probe's seed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any

from moco_det.foundation.errors import InputError
from moco_det.report.formats import ALL_METRICS, METRICS, counted, short_name
from moco_det.report.statistics import Comparison, Trials, compare, correct, summarise
from moco_det.results import Row
from moco_det.results.matched import (
    IGNORED_KEYS,
    INPUT_KEYS,
    WEIGHTS_KEY,
    Difference,
    Matched,
    compare_configs,
    flatten_config,
    without_fold,
)

# Reading order of arms: no pre-training, supervised pre-training, then what is on trial.
RANDOM, SUPERVISED, ON_TRIAL = range(3)
_RANKS = {"random": RANDOM, "supervised": SUPERVISED, "sup": SUPERVISED}

# An arm whose AP50 is below this, in percent, has not learned to detect.
NEAR_NOTHING = 5.0

# Settings that probes of one group may choose for themselves: papers tune them for each.
FREE_SETTINGS: dict[str, tuple[str, ...]] = {"finetune": ("lr", "head_lr")}


@dataclass
class ArmRuns:
    """One initialisation in one setting; `rows` are its trials in order of seed.

    `colour` is the number of its colour on the page, the same for the same label.
    """

    name: str
    label: str
    rows: tuple[Row, ...]
    colour: int = 0

    @property
    def rank(self) -> int:
        return _RANKS.get(self.name, ON_TRIAL)

    @property
    def init(self) -> Mapping[str, Any]:
        """Where the first trial's weights come from."""
        return self.rows[0].data["init"]

    @property
    def source(self) -> Mapping[str, Any]:
        """What the weights say of the checkpoint that they were converted from."""
        return self.init["source"] or {}

    @property
    def steps(self) -> int | None:
        """Iterations; of a probe those of the pre-training, None where they are not known."""
        return self.rows[0].data["iterations"]

    def trials(self, metric: str, key: str = "AP") -> Trials:
        """The trials of one AP ("bbox", "segm" or "voc") or accuracy ("probe")."""
        return summarise(row.metric(metric, key) for row in self.rows)

    def class_trials(self, metric: str, category: str) -> Trials:
        """The trials of one class's AP."""
        return summarise(row.per_class(metric).get(category) for row in self.rows)

    def learned(self, metric: str) -> bool:
        """Whether the mean AP50 reaches NEAR_NOTHING, or is not known."""
        mean = self.trials(metric, "AP50").mean
        return mean is None or mean >= NEAR_NOTHING


@dataclass(frozen=True)
class Group:
    """One setting and its arms: random first, supervised second, the others by name.

    `repeated` are rows that a later one with the same weights and seed replaces.
    """

    index: int
    title: str
    arms: tuple[ArmRuns, ...]
    repeated: tuple[Row, ...]
    _compared: dict[tuple[str, str, str], dict[str, Comparison]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """ "Setting A", B, ... Z, 27, 28 ... for pages with several settings."""
        return f"Setting {chr(ord('A') + self.index) if self.index < 26 else self.index + 1}"

    @property
    def data(self) -> Mapping[str, Any]:
        """Any row's data: they agree in everything that groups them."""
        return self.arms[0].rows[0].data

    @property
    def rows(self) -> tuple[Row, ...]:
        """The trials of every arm."""
        return tuple(row for arm in self.arms for row in arm.rows)

    @property
    def supervised(self) -> ArmRuns | None:
        """The arm that the others are compared with; None if absent or not one."""
        return self._only(SUPERVISED)

    @property
    def random(self) -> ArmRuns | None:
        """The arm without pre-training; None if absent or not one."""
        return self._only(RANDOM)

    @property
    def on_trial(self) -> tuple[ArmRuns, ...]:
        """The arms that are neither random nor supervised."""
        return tuple(arm for arm in self.arms if arm.rank == ON_TRIAL)

    def _only(self, rank: int) -> ArmRuns | None:
        found = [arm for arm in self.arms if arm.rank == rank]
        return found[0] if len(found) == 1 else None

    @cached_property
    def all_metrics(self) -> list[str]:
        """The metrics that were measured in any run, COCO's first."""
        return [m for m in ALL_METRICS if any(row.metric_table(m) for row in self.rows)]

    @property
    def metrics(self) -> list[str]:
        """COCO's of them."""
        return [metric for metric in self.all_metrics if metric in METRICS]

    def against(
        self, arm: ArmRuns, reference: ArmRuns | None, metric: str, key: str = "AP"
    ) -> Comparison | None:
        """`arm` minus `reference`; None where there is no reference or it is the arm itself.

        Where several arms are on trial (neither random nor the reference) their differences to it
        are corrected together.
        """
        if reference is None or reference is arm:
            return None
        asked = (reference.label, metric, key)
        if asked not in self._compared:
            trials = {one.label: one.trials(metric, key) for one in self.arms}
            by_label = self._compare(metric, trials, reference)
            family = {one.label: by_label[one.label] for one in self.on_trial}
            self._compared[asked] = {**by_label, **correct(family)}
        return self._compared[asked][arm.label]

    def class_gap(self, arm: ArmRuns, metric: str, category: str) -> Comparison | None:
        """An arm minus supervised in the AP of one class."""
        if self.supervised is None or self.supervised is arm:
            return None
        trials = {one.label: one.class_trials(metric, category) for one in self.arms}
        return self._compare(metric, trials, self.supervised)[arm.label]

    def _compare(
        self, metric: str, trials: Mapping[str, Trials], reference: ArmRuns
    ) -> dict[str, Comparison]:
        every, theirs, known = trials.values(), trials[reference.label], reference.learned(metric)
        return {
            arm.label: compare(
                trials[arm.label], theirs, every, learned=known or arm.learned(metric)
            )
            for arm in self.arms
        }

    @cached_property
    def matched(self) -> Matched:
        """The proof that the arms differ only in their initialisation."""
        configs = {a.label: without_fold(str(a.rows[0].data["config"])) for a in self.arms}
        try:
            return compare_configs(configs, {a.label: a.init.get("input") for a in self.arms})
        except InputError as error:  # a row from elsewhere: what cannot be read is not matched
            fault = Difference("config", dict.fromkeys(configs, ""), str(error))
            return Matched(tuple(configs), 0, (), (fault,))


def group_runs(rows: Iterable[Row]) -> list[Group]:
    """The finished detection runs in groups, in the order in which each setting first appears."""
    runs = (row for row in rows if row.finished and not row.probe)
    return _grouped(runs, setting_key, _initialisation, _label_runs, title_of)


def group_probes(rows: Iterable[Row]) -> list[Group]:
    """The finished probes in groups, in the order in which each first appears."""
    probes = (row for row in rows if row.finished and row.probe)
    return _grouped(probes, _probe_key, _probed, _label_probes, _probe_title)


Identity = tuple[str, ...]  # of an arm; begins with its name


def _grouped(
    rows: Iterable[Row],
    key: Callable[[Row], str],
    arm_of: Callable[[Row], Identity],
    labels_of: Callable[[Collection[Identity]], list[str]],
    title: Callable[[Row], str],
) -> list[Group]:
    """Of rows with the same setting, weights and seed the last counts: a repetition is no trial."""
    by_key: dict[str, list[Row]] = {}
    for row in rows:
        by_key.setdefault(key(row), []).append(row)
    groups = []
    for index, members in enumerate(by_key.values()):
        last: dict[tuple[Identity, str, tuple[int, str]], Row] = {}
        repeated = []
        for row in members:
            trial = (arm_of(row), str(row.data["init"]["sha256"]), row.trial)
            if trial in last:
                repeated.append(last[trial])
            last[trial] = row
        trials: dict[Identity, list[Row]] = {}
        for (arm, _, _), row in last.items():
            trials.setdefault(arm, []).append(row)
        arms = [
            ArmRuns(arm[0], label, tuple(sorted(found, key=lambda row: row.trial)))
            for label, (arm, found) in zip(labels_of(trials), trials.items(), strict=True)
        ]
        arms.sort(key=lambda arm: (arm.rank, arm.label, -1 if arm.steps is None else arm.steps))
        groups.append(Group(index, title(members[0]), tuple(arms), tuple(repeated)))
    return groups


def setting_key(row: Row, *, without: Collection[str] = ()) -> str:
    """What rows must share to be averaged or compared, but for facts and config keys `without`."""
    parts = (facts_of(row), _shared_config(row))
    kept = [{key: value for key, value in part.items() if key not in without} for part in parts]
    return json.dumps(kept, sort_keys=True, default=str)


def facts_of(row: Row) -> dict[str, Any]:
    """What settings have besides their config."""
    data = row.data
    return {
        "task": data["task"],
        "protocol": data.get("protocol"),
        "engine": data["engine"]["name"],
        "engine version": data["engine"]["version"],
        "precision": data["precision"],
        "training data": data["dataset"].get("train_share") or data["dataset"]["train_fingerprint"],
        "test data": data["dataset"]["test_fingerprint"],
        "iterations": data["iterations"],
        "batch size": data["batch"],
    }


def _shared_config(row: Row) -> dict[str, Any]:
    """The config without what arms and trials may change."""
    free = {WEIGHTS_KEY, *IGNORED_KEYS, *INPUT_KEYS}
    found = {key: value for key, value in sorted(config_of(row).items()) if key not in free}
    return {**found, "DATASETS.TRAIN": without_fold(str(found.get("DATASETS.TRAIN")))}


def apart_because(group: Group, main: Group) -> list[str]:
    """What sets a group apart from the main one: "name: main's value → this one's"."""
    ours, theirs = (
        {**facts_of(one.arms[0].rows[0]), **_shared_config(one.arms[0].rows[0])}
        for one in (group, main)
    )

    def said(of: Mapping[str, Any], key: str) -> str:
        text = str(of.get(key, "(absent)"))
        return text[: max(12, len(text) - 52)] if key.endswith(" data") else text

    keys = [key for key in {**theirs, **ours} if ours.get(key) != theirs.get(key)]
    return [f"{key}: {said(theirs, key)} → {said(ours, key)}" for key in keys]


def title_of(row: Row) -> str:
    """A setting's heading: data, task, schedule, engine, precision."""
    data, engine = row.data, row.data["engine"]
    return (
        f"{short_name(data['dataset']['test'])} · {data['task']} · {config_title(row)} · "
        f"{data['iterations']:,} iterations × batch {data['batch']} · "
        f"{engine['name']} {engine['version']} · {data['precision']}"
    )


def config_title(row: Row) -> str:
    """The config's name, with timm's of a network that it does not name itself."""
    name, network = row.data["config_name"], config_of(row).get("MODEL.TIMM.NAME")
    return f"{name} over {network}" if network and network not in name else str(name)


def config_of(row: Row) -> Mapping[str, Any]:
    """A row's config with dotted keys; text that is no config is one value."""
    return parse_config(str(row.data["config"]))


def parse_config(text: str) -> Mapping[str, Any]:
    """A config's text in two parts, for runs that share all but SEED and OUTPUT_DIR: the shared
    part is parsed once."""
    own = _OWN_LINE.findall(text)
    if not own or len({line.split(":")[0] for line in own}) != len(own):
        return _parsed(text)  # a key given twice is for the parser to refuse
    return {**_parsed(_OWN_LINE.sub("", text)), **_parsed("".join(own))}


# A top-level key with a value of one line, as our configs end; the rest is shared by seeds.
_OWN_LINE = re.compile(r"^(?:OUTPUT_DIR|SEED): [^|>\s][^\n]*\n(?![ \t])", re.MULTILINE)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Mapping[str, Any]:
    try:
        return MappingProxyType(flatten_config(text))
    except InputError:
        # A row from elsewhere may hold any text; it then groups with its equals only.
        return MappingProxyType({"config": text})


def _initialisation(row: Row) -> Identity:
    """(name, settings of the pre-training or else sha256, values of the input keys) of weights."""
    config, init = config_of(row), row.data["init"]
    fed = json.dumps({key: config.get(key) for key in INPUT_KEYS}, default=str)
    made = (init["source"] or {}).get("settings") or init["sha256"] or ""
    return row.arm, str(made), fed


def _label_runs(arms: Collection[Identity]) -> list[str]:
    names = [name for name, _, _ in arms]
    labels: list[str] = []
    for name, sha256, _ in arms:
        label = name if names.count(name) == 1 else f"{name} [{sha256[:8] or 'no weights'}]"
        if label in labels:
            label = f"{label} fed otherwise ({labels.count(label) + 1})"
        labels.append(label)
    return labels


def _probe_key(row: Row) -> str:
    free = FREE_SETTINGS.get(row.data["protocol"], ())
    return setting_key(row, without={"iterations", "batch size", *free})


def _probed(row: Row) -> Identity:
    """(name, way of pre-training, settings of its own, steps) of a probe's weights."""
    config = config_of(row)
    own = {key: config.get(key) for key in FREE_SETTINGS.get(row.data["protocol"], ())}
    text = ", ".join(f"{k} {v:g}" for k, v in own.items() if type(v) in (int, float))
    ways = (row.data["init"]["source"] or {}).get("settings")
    return row.arm, str(ways or ""), text, str(row.data["iterations"])


def _label_probes(arms: Collection[Identity]) -> list[str]:
    labels = []
    for name, ways, own, _ in arms:
        label = name
        if len({other[1] for other in arms if other[0] == name}) > 1:
            label += f" [{ways[:8] or 'no settings'}]"
        if own and len({other[2] for other in arms}) > 1:
            label += f" ({own})"
        labels.append(label)
    return labels


# protocol -> what it is called
PROTOCOLS = {
    "knn": "nearest neighbours",
    "linear": "linear classifier, SGD over random crops",
    "linear_lbfgs": "linear classifier, L-BFGS on central views (a protocol of its own)",
    "finetune": "fine-tuning of the whole network",
}


def _probe_title(row: Row) -> str:
    data, config = row.data, config_of(row)
    words = {"arch": "{}", "size": "{} px", "k": "k={}", "features": "{} features"}
    parts = [short_name(data["dataset"]["test"]), PROTOCOLS[data["protocol"]]]
    parts += [text.format(config[key]) for key, text in words.items() if key in config]
    if "epochs" in config:
        parts.append(counted(config["epochs"], "epoch"))
    return " · ".join([*parts, data["precision"]])
