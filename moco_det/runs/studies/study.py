"""A study: a yaml file with a question, hypotheses, and what they are about.

    question: Does a faster key encoder help a short run?
    seeds: 3                                   # starts of each encoder, unless --seeds says
    data:
      world: {painted: {seed: 11}}             # made here; or {}: --data world=DIR
    pretraining:                               # of every encoder that does not say otherwise
      config: demo_moco_r18
      set: {DATA.PATH: $world/scenes/unlabelled, SOLVER.MAX_ITER: 600}
    encoders:
      fast: {set: {MOCO.M: 0.97}}
      slow: {set: {MOCO.M: 0.999}}
    probes:
      knn: {protocol: knn, train: $world/crops/train, test: $world/crops/test, options: {k: 10}}
    settings:
      painted:
        config: demo_R18_FPN
        set: {DATASETS.TRAIN: [...], DATASETS.TEST: [...], MODEL.ROI_HEADS.NUM_CLASSES: 4}
    hypotheses:
      - {claim: fast.AP > slow.AP, least: 1.0}

Nothing runs that no hypothesis needs (`measure` names further quantities). `random` is an encoder
without pre-training, of the architecture of the others.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from moco_det.foundation import declared
from moco_det.foundation.declared import at_least, one_of, within
from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import did_you_mean, flatten, load_yaml
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.results.claims import Claim, Hypothesis, Quantity, Term, read_claim
from moco_det.runs.suites.suite import MOST_SEEDS, RUN_KEYS
from moco_det.settings.zoo import PRETRAINING, find_config
from moco_det.weights.download import is_address

RANDOM = "random"
# of encoders, probes, settings and data; a dot stands between an encoder and its metric
_NAME = r"[A-Za-z][A-Za-z0-9_+-]{0,59}"
PROTOCOLS = ("knn", "linear", "linear-lbfgs", "finetune")
# Numbers of a pre-training's own log, and how each is made of its last fifth.
LOGGED = ("loss", "accuracy", "jitter")
# metric of a claim -> metric and key of a row
APS = {
    (key if metric == "bbox" else f"{metric}.{key}"): (metric, key)
    for metric in ("bbox", "segm", "voc")
    for key in ("AP", "AP50", "AP75", "APs", "APm", "APl")
}


@dataclass
class StudyFile:
    """The keys of a study file."""

    question: str = ""
    source: str = ""  # where the claims come from
    seeds: int = within(1, MOST_SEEDS, 3)
    data: dict[str, Any] = field(default_factory=dict)
    pretraining: dict[str, Any] = field(default_factory=dict)
    encoders: dict[str, Any] = field(default_factory=dict)
    probes: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    hypotheses: list[Any] = field(default_factory=list)
    measure: list[Any] = field(default_factory=list)


@dataclass
class EncoderEntry:
    """The keys of an encoder: how it is pre-trained, or a checkpoint that is there, or neither."""

    config: str = ""
    set: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    random: bool = False


@dataclass
class ProbeEntry:
    """The keys of a probe; `options` are those of `moco-det probe`."""

    protocol: str = one_of(PROTOCOLS, "knn")
    train: str = ""
    test: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        """The options as a command line has them."""
        pairs = ((f"--{key}", value) for key, value in self.options.items())
        return [str(w) for key, v in pairs for w in (key, *(v if isinstance(v, list) else [v]))]


@dataclass
class DetectionEntry:
    """The keys of a setting of detectors."""

    config: str = ""
    set: dict[str, Any] = field(default_factory=dict)


@dataclass
class HypothesisEntry:
    """The keys of a hypothesis."""

    claim: str = ""
    least: float = at_least(0.0, 0.0)
    published: str = ""
    paired: bool = False  # seed by seed: for encoders that begin from the same weights


@dataclass(frozen=True)
class StudyEncoder:
    """How an encoder comes about: `keys` of its pre-training, or its `weights`, or at random."""

    name: str
    keys: Mapping[str, Any]
    weights: str = ""  # a file or an address
    random: bool = False
    said: str = ""  # what the file says of it alone

    @property
    def architecture(self) -> str:
        """Of what is pre-trained or drawn here."""
        return str(self.keys.get("ENCODER.ARCH", "resnet50"))


@dataclass(frozen=True)
class StudyPlan:
    """What a study file says; strings may hold $NAME of a data set."""

    name: str
    question: str
    source: str
    seeds: int
    data: Mapping[str, Mapping[str, Any]]
    encoders: Mapping[str, StudyEncoder]
    probes: Mapping[str, ProbeEntry]
    settings: Mapping[str, Mapping[str, Any]]
    hypotheses: Sequence[Hypothesis]
    measured: Sequence[Quantity]

    @cached_property
    def quantities(self) -> list[Quantity]:
        """All that is measured, in the order of the hypotheses."""
        claimed = [term.quantity for one in self.hypotheses for term in one.claim.terms]
        return list(dict.fromkeys([*claimed, *self.measured]))


def read_study(path: Path) -> StudyPlan:
    """Read a study; InputError naming the file and the key for whatever it does not understand."""
    file = declared.read(StudyFile, load_yaml(path), str(path))
    if not file.question or not (file.hypotheses or file.measure):
        raise InputError(f"{path}: a study has a 'question' and 'hypotheses'")
    for part in (file.data, file.encoders, file.probes, file.settings):
        for name in part:
            if not isinstance(name, str) or not re.fullmatch(_NAME, name):
                raise InputError(f"{path}: the name {name!r}: up to 60 letters, digits, _ + and -")
    common = declared.read(EncoderEntry, file.pretraining, f"{path}: pretraining")
    encoders = {
        name: _encoder(name, tree or {}, common, path) for name, tree in file.encoders.items()
    }
    encoders.setdefault(RANDOM, StudyEncoder(RANDOM, _pretraining(common, {}, path), random=True))
    probes = {
        name: _probe(declared.read(ProbeEntry, tree, f"{path}: the probe {name}"), name, path)
        for name, tree in file.probes.items()
    }
    settings = {
        name: _setting(declared.read(DetectionEntry, tree, f"{path}: the setting {name}"), path)
        for name, tree in file.settings.items()
    }
    plan = StudyPlan(
        path.stem, file.question, file.source, file.seeds,
        {name: {} if recipe is None else recipe for name, recipe in file.data.items()},
        encoders, probes, settings, (), (),
    )  # fmt: skip
    hypotheses = []
    for tree in file.hypotheses:
        entry = declared.read(HypothesisEntry, tree, f"{path}: a hypothesis")
        claim = _claim(entry.claim, path)
        terms = [Term(t.factor, known(plan, t.quantity, path)) for t in claim.terms]
        if len({term.quantity for term in terms}) < len(terms):
            raise InputError(f"{path}: {claim.text!r} names a quantity twice: name each once")
        claim = Claim(claim.text, tuple(terms), claim.relation)
        if claim.relation == "~" and not entry.least:
            raise InputError(f"{path}: {claim.text!r} needs a 'least': how much is still equal")
        hypotheses.append(Hypothesis(claim, entry.least, entry.published, entry.paired))
    measured = []
    for text in file.measure:
        claim = _claim(f"{text} > {text}", path)
        if len(claim.terms) > 2:
            raise InputError(f"{path}: measure {text!r}: write one quantity in a line")
        measured.append(known(plan, claim.terms[0].quantity, path))
    return replace(plan, hypotheses=hypotheses, measured=measured)


def known(plan: StudyPlan, quantity: Quantity, path: Path) -> Quantity:
    """A quantity of a study with its setting; InputError where the study has no such thing."""
    where = f"{path}: {quantity}"
    encoder, metric, setting = quantity
    if encoder not in plan.encoders:
        raise InputError(f"{where}: no encoder {encoder}{did_you_mean(encoder, plan.encoders)}")
    if metric in plan.probes or metric in LOGGED:
        if setting:
            raise InputError(f"{where}: {metric} is of no setting; leave out 'at {setting}'")
        made = plan.encoders[encoder]
        if metric in LOGGED and (made.random or made.weights):
            raise InputError(f"{where}: {encoder} is not pre-trained here, so it has no log")
        return quantity
    if metric not in APS:
        names = [*plan.probes, *LOGGED, *APS]
        raise InputError(f"{where}: no probe or metric {metric}{did_you_mean(metric, names, 3)}")
    if not setting and len(plan.settings) == 1:
        return quantity._replace(setting=next(iter(plan.settings)))
    if setting not in plan.settings:
        shown = ", ".join(plan.settings) or "none"
        raise InputError(f"{where}: name one of its settings ({shown}) by 'at SETTING'")
    return quantity


def _claim(text: str, path: Path) -> Claim:
    try:
        return read_claim(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _encoder(name: str, tree: Any, common: EncoderEntry, path: Path) -> StudyEncoder:
    where = f"{path}: the encoder {name}"
    entry = declared.read(EncoderEntry, tree, where)
    if name == RANDOM and not entry.random:
        raise InputError(f"{where} is the one without pre-training: choose another name")
    if entry.weights:
        if entry.config or entry.set or entry.random:
            raise InputError(f"{where} has weights: leave out config, set and random")
        given = entry.weights if is_address(entry.weights) else str(path.parent / entry.weights)
        return StudyEncoder(name, {}, weights=given, said=entry.weights)
    own = [entry.config, *(f"{key} {value}" for key, value in flatten(entry.set).items())]
    said = ", ".join(filter(None, own))
    keys = _pretraining(common, {"config": entry.config, "set": entry.set}, path)
    if entry.random:
        keys = {"ENCODER.ARCH": keys.get("ENCODER.ARCH")}
        return StudyEncoder(name, keys, random=True, said=said)
    if not entry.config and not common.config:
        raise InputError(f"{where} has no 'config', a pre-training config's name or yaml file")
    arch = str(keys.get("ENCODER.ARCH", "resnet50"))
    if arch not in ARCHITECTURES:
        hint = did_you_mean(arch, ARCHITECTURES)
        raise InputError(f"{where}: unknown ENCODER.ARCH {arch}{hint}")
    return StudyEncoder(name, keys, said=said)


def _pretraining(common: EncoderEntry, own: Mapping[str, Any], path: Path) -> dict[str, Any]:
    config = own.get("config") or common.config
    keys: dict[str, Any] = {"METHOD": "moco"}
    if config:
        keys |= flatten(load_yaml(find_config(config, path.parent, patterns=PRETRAINING)))
    changes = {**flatten(common.set), **flatten(own.get("set") or {})}
    return _without(("SEED", "OUTPUT_DIR"), keys, changes, path)


def _probe(entry: ProbeEntry, name: str, path: Path) -> ProbeEntry:
    if not entry.train or not entry.test:
        raise InputError(f"{path}: the probe {name} needs 'train' and 'test', folders of classes")
    if name in LOGGED or name in APS:
        raise InputError(f"{path}: a probe cannot be called {name}, which is another metric")
    return entry


def _setting(entry: DetectionEntry, path: Path) -> dict[str, Any]:
    keys = {} if not entry.config else flatten(load_yaml(find_config(entry.config, path.parent)))
    keys = _without(RUN_KEYS, keys, flatten(entry.set), path)
    for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
        if not keys.get(key):
            raise InputError(f"{path}: a setting has no {key}")
    return keys


def _without(
    own: Collection[str], keys: Mapping[str, Any], changes: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """The changed keys of a config without a study's own; InputError where a study sets them."""
    for key in changes:
        if key in own:
            raise InputError(f"{path}: {key} is set by the study for each start: take it out")
    return {key: value for key, value in {**keys, **changes}.items() if key not in own}
