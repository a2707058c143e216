"""The pieces of a study: pre-trainings, conversions, probes and detectors, in order of worth.

A piece is one process with a folder of its own. Its name holds a digest of what makes it, so that
a changed config is another piece, and studies that share a folder share what they have in common.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moco_det import __version__
from moco_det.foundation.atomic import make_folder, write_text
from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import did_you_mean, nest
from moco_det.results.claims import Quantity
from moco_det.runs.row import version_of
from moco_det.runs.studies.data_sets import StudyData
from moco_det.runs.studies.study import LOGGED, StudyEncoder, StudyPlan
from moco_det.runs.suites.matrix import Run, SuiteArm, read_arms
from moco_det.runs.suites.runner import TRAIN
from moco_det.runs.suites.suite import DEFAULT_ITERATIONS, SuiteSetting
from moco_det.settings.config import dump
from moco_det.weights.architectures import detector_keys
from moco_det.weights.download import local_path

PRETRAIN, CONVERT, PROBE = (
    (sys.executable, "-m", f"moco_det_tools.{tool}")
    for tool in ("pretrain", "convert_weights", "probe")
)
# Trials without which no interval can be drawn; more come after every hypothesis has these.
FIRST = 2


@dataclass(frozen=True)
class Piece:
    """A process to run. `file` tells that it is done, or else a row of its name."""

    name: str
    trial: str  # of an encoder: the unit of a job array
    folder: Path
    iterations: int
    needs: tuple[str, ...]
    file: Path | None = None
    command: tuple[str, ...] = ()
    config: tuple[Path, str] | None = None  # written before it starts
    run: Run | None = None  # of a detector, whose command needs its weights' metadata


@dataclass(frozen=True)
class TrialRun(Run):
    """A detector on the weights of a trial that may not be there yet: its key is the trial's."""

    trial: str = ""
    unresolved: str = ""  # the setting's keys, with names of data sets

    @property
    def key(self) -> str:  # type: ignore[override]
        return digest(self.unresolved, self.trial, self.seed, self.engine, self.version)


@dataclass(frozen=True)
class Matrix:
    """All pieces in order of worth, and which piece measures a quantity with a seed."""

    pieces: Sequence[Piece]
    measures: Mapping[tuple[str, Quantity, int], str]  # by study

    def only(self, trial: str) -> Matrix:
        """The pieces of one trial; InputError where there is none of this name."""
        known = dict.fromkeys(one.trial for one in self.pieces)
        if trial not in known:
            raise InputError(f"--only {trial}: no such trial{did_you_mean(trial, known, 3)}")
        return replace(self, pieces=[one for one in self.pieces if one.trial == trial])


def digest(*parts: Any) -> str:
    """Ten hex digits of what makes a piece."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:10]


def build_pieces(
    studies: Sequence[StudyPlan],
    output: Path,
    data: StudyData,
    *,
    seeds: Sequence[int] | None,
    engine: str,
    device: str,
) -> Matrix:
    """What the hypotheses need, the most valuable first.

    The first two seeds of the first hypothesis, then those of the second, and so on; then one more
    seed of each in turn. `device` is "cpu" where there is no GPU, or "" for what the configs say.
    """
    maker = _Maker(output, data, engine, device)
    order: list[tuple[tuple[int, int, int], list[Piece]]] = []
    measures = {}
    for number, study in enumerate(studies):
        places = _places(study)
        for quantity in study.quantities:
            for index, seed in enumerate(range(study.seeds) if seeds is None else seeds):
                made = maker.pieces_for(study, quantity, seed)
                measures[study.name, quantity, seed] = made[-1].name
                worth = (max(index, FIRST - 1), 1000 * number + places[quantity], index)
                order.append((worth, made))
    order.sort(key=lambda one: one[0])
    pieces = {piece.name: piece for _, made in order for piece in made}
    return Matrix(list(pieces.values()), measures)


def _places(study: StudyPlan) -> dict[Quantity, int]:
    places: dict[Quantity, int] = {}
    for number, hypothesis in enumerate(study.hypotheses):
        for term in hypothesis.claim.terms:
            places.setdefault(term.quantity, number)
    return {quantity: places.get(quantity, 999) for quantity in study.quantities}


class _Maker:
    """Makes the pieces that a quantity needs."""

    def __init__(self, output: Path, data: StudyData, engine: str, device: str) -> None:
        self.output, self.data, self.engine, self.device = output, data, engine, device
        self.version = __version__ if engine == "standalone" else version_of("detectron2")
        self.arms: dict[tuple[str, str], tuple[Path, SuiteArm]] = {}

    def pieces_for(self, study: StudyPlan, quantity: Quantity, seed: int) -> list[Piece]:
        """In order; the last one measures it."""
        encoder = study.encoders[quantity.encoder]
        recipes = [self.data.described(encoder.keys)]
        if encoder.weights:
            name = f"{encoder.name}_{digest(self._given(encoder)[1].sha256)}"
        else:
            made = "random" if encoder.random else "pretrained"
            own = encoder.architecture if encoder.random else encoder.keys
            name = f"{encoder.name}_seed{seed}_{digest(made, own, recipes, seed, __version__)}"
        first = [] if encoder.random or encoder.weights else [self._pretrain(encoder, name, seed)]
        if quantity.metric in LOGGED:
            return first
        given = self._given(encoder)[0] if encoder.weights else "random"
        checkpoint = str(first[-1].file if first else given)
        if quantity.metric in study.probes:
            return [*first, self._probe(study, quantity, name, seed, checkpoint, first)]
        if first:
            first.append(self._convert(name, checkpoint, first))
        return [*first, self._detect(study, quantity, name, seed, first)]

    def _given(self, encoder: StudyEncoder) -> tuple[Path, SuiteArm]:
        """The file of an encoder that is there, and its backbone."""
        key = encoder.name, encoder.weights
        if key not in self.arms:
            file = local_path(encoder.weights)
            words = [f"{encoder.name}={file}"]
            self.arms[key] = file, read_arms(words, random=False, supervised=False)[0]
        return self.arms[key]

    def _pretrain(self, encoder: StudyEncoder, name: str, seed: int) -> Piece:
        folder = self.output / "pretrain" / name
        keys = {key: self.data.placed(value) for key, value in encoder.keys.items()}
        if self.device:
            keys["DEVICE"] = self.device
        else:  # a small network keeps a GPU waiting for launches
            keys.setdefault("COMPILE", keys.get("DEVICE") != "cpu")
        config = self.output / "configs" / f"{encoder.name}_{digest(keys)}.yaml"
        words = ["--config-file", str(config), "--resume"]
        words += ["OUTPUT_DIR", str(folder), "SEED", str(seed)]
        return Piece(
            name,
            name,
            folder,
            _whole(keys.get("SOLVER.MAX_ITER")),
            (),
            file=folder / "checkpoint.pth",
            command=(*PRETRAIN, *words),
            config=(config, dump(nest(keys))),
        )

    def _convert(self, trial: str, checkpoint: str, first: Sequence[Piece]) -> Piece:
        folder = self.output / "weights" / trial
        file = folder / f"{trial}.pkl"
        words = (*CONVERT, checkpoint, str(file))
        needs = tuple(piece.name for piece in first)
        return Piece(f"{trial}.pkl", trial, folder, 0, needs, file=file, command=words)

    def _probe(
        self,
        study: StudyPlan,
        quantity: Quantity,
        trial: str,
        seed: int,
        checkpoint: str,
        first: Sequence[Piece],
    ) -> Piece:
        probe = study.probes[quantity.metric]
        options, sets = probe.words, ["--train", probe.train, "--test", probe.test]
        recipes = self.data.described(sets)
        key = digest(probe.protocol, options, sets, recipes, trial, seed, __version__)
        name = f"{quantity.metric}_{quantity.encoder}_seed{seed}_{key}"
        folder = self.output / "probes" / name
        words = [probe.protocol, checkpoint, *self.data.placed(sets), *options]
        words += ["--name", quantity.encoder, "--run", name, "--seed", str(seed)]
        words += ["--results", str(self.output / "results.jsonl")]
        if checkpoint == "random":
            words += ["--arch", study.encoders[quantity.encoder].architecture]
        if probe.protocol in ("linear", "finetune"):
            words += ["--output", str(folder), "--resume"]
        if self.device:
            words += ["--device", self.device]
        needs = tuple(piece.name for piece in first)
        return Piece(name, trial, folder, 0, needs, command=(*PROBE, *words))

    def _detect(
        self,
        study: StudyPlan,
        quantity: Quantity,
        trial: str,
        seed: int,
        first: Sequence[Piece],
    ) -> Piece:
        encoder, name = study.encoders[quantity.encoder], quantity.setting
        keys = dict(study.settings[name])
        if encoder.weights:
            _, arm = self._given(encoder)
            architecture = arm.architecture or "resnet50"
        else:
            arm = SuiteArm(quantity.encoder, first[-1].file if first else None, None, {})
            architecture = encoder.architecture
        keys |= detector_keys(architecture)
        unresolved = dump(nest(keys)) + json.dumps(self.data.described(keys), sort_keys=True)
        resolved = {key: self.data.placed(value) for key, value in keys.items()}
        if self.device:
            resolved["MODEL.DEVICE"] = self.device
        setting = SuiteSetting(f"{name}-{digest(unresolved)[:4]}", resolved)
        run = TrialRun(setting, arm, seed, self.engine, self.version, trial, unresolved)
        return Piece(
            run.name,
            trial,
            run.folder(self.output),
            _whole(keys.get("SOLVER.MAX_ITER", DEFAULT_ITERATIONS)),
            tuple(piece.name for piece in first[-1:]),
            config=(run.config_file(self.output), setting.text),
            run=run,
        )


def _whole(value: Any) -> int:
    """A number of steps to show; what is none is refused by whom it is for."""
    return value if isinstance(value, int) else 0


def command_of(piece: Piece, output: Path) -> list[str]:
    """What a piece runs, once what it needs is there; its config is written."""
    if piece.config is not None:
        path, text = piece.config
        make_folder(path.parent)
        write_text(path, text)
    if piece.run is None:
        return list(piece.command)
    run = piece.run
    if run.arm.weights is not None and run.arm.sha256 is None:
        words = [f"{run.arm.name}={run.arm.weights}"]
        run = replace(run, arm=read_arms(words, random=False, supervised=False)[0])
    return [*TRAIN, *run.options(output)]
