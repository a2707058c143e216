"""A study from its pieces to its report."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from moco_det.data.check import load_pair
from moco_det.foundation.atomic import write_text
from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import did_you_mean, flatten, load_mapping
from moco_det.report import make_report
from moco_det.report.formats import counted
from moco_det.report.hypotheses import lines, values_csv
from moco_det.runs.studies.data_sets import StudyData
from moco_det.runs.studies.pieces import Matrix, Piece
from moco_det.runs.studies.runner import findings, left_of, run_pieces
from moco_det.runs.studies.study import RANDOM, StudyPlan
from moco_det.runs.suites.matrix import check_settings
from moco_det.runs.suites.processes import Slot

# What every protocol of a probe can be asked for.
COMMON = {"size", "batch", "precision"}
# A report is made again after this many times what the last one took.
SPARINGLY = 20

Config = TypeVar("Config")
# Reads KEY VALUE words as a pre-training does.
ReadConfig = Callable[[None, Sequence[str]], Config]


def check(matrix: Matrix, *, engine: str, read_config: ReadConfig[Any]) -> None:
    """InputError for what a piece would refuse, before the first one runs; it prints warnings."""
    for encoder, words in _pretrainings(matrix.pieces):
        with _naming(f"the encoder {encoder}"):
            read_config(None, words)
    runs = [piece.run for piece in matrix.pieces if piece.run]
    warnings: dict[str, None] = {}
    for run in {(run.setting.name, run.arm.name): run for run in runs}.values():
        setting = replace(run.setting, name=run.setting.name.rpartition("-")[0])
        warnings |= dict.fromkeys(check_settings([setting], [run.arm], engine=engine))
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)


def _pretrainings(pieces: Sequence[Piece]) -> Iterator[tuple[str, list[str]]]:
    """The encoders with the KEY VALUE words of their configs, each config once."""
    texts = {p.config[1]: p.name for p in pieces if p.config and not p.run}
    for text, name in texts.items():
        keys = flatten(load_mapping(text, "a pre-training config"))
        words = [word for key, value in keys.items() for word in (key, str(value))]
        yield name.rpartition("_seed")[0], words


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """InputErrors begin with the part of the study that they are of."""
    try:
        yield
    except InputError as error:
        said = re.sub("(on|in) the command line", "in its config", str(error))
        raise InputError(f"{what}: {said}") from None


def check_probes(
    studies: Sequence[StudyPlan],
    protocols: Mapping[str, tuple[str, Any]],
    read_probe: Callable[[Sequence[str]], Any],
) -> None:
    """InputError for options that `moco-det probe` refuses.

    It reads a command line by `read_probe`; `protocols` are its subcommands.
    """
    for study in studies:
        for name, probe in study.probes.items():
            own = (one.name.replace("_", "-") for one in fields(protocols[probe.protocol][1]))
            known = {*COMMON, *own} - {"output", "resume"}
            with _naming(f"{study.name}: the probe {name}"):
                for key in probe.options:
                    if key not in known:
                        raise InputError(f"unknown option {key}{did_you_mean(str(key), known)}")
                read_probe([probe.protocol, "random", "--train=x", "--test=y", *probe.words])


def check_data(
    studies: Sequence[StudyPlan],
    matrix: Matrix,
    output: Path,
    data: StudyData,
    *,
    read_config: ReadConfig[Config],
    check_images: Callable[[Config], None],
    check_pair: Callable[..., Any],
) -> None:
    """InputError for data, which are there now, that a piece which is left would refuse.

    `check_images` looks at those of a pre-training, `check_pair` at the two folders of a probe.
    """
    left = {piece.name: piece for piece in left_of(matrix, output)}
    for encoder, words in _pretrainings(list(left.values())):
        with _naming(f"the encoder {encoder}"):
            check_images(read_config(None, words))
    needed = {
        (study, quantity.setting or quantity.metric)
        for (study, quantity, _), name in matrix.measures.items()
        if name in left
    }
    seen: set[str] = set()
    for study in studies:
        for name, probe in study.probes.items():
            folders = data.placed([probe.train, probe.test])
            if (study.name, name) in needed and str(folders) not in seen:
                check_pair(
                    *folders, keys=(f"train of the probe {name}", f"test of the probe {name}")
                )
                seen.add(str(folders))
        for name, keys in study.settings.items():
            pair = {
                "train": data.placed(keys["DATASETS.TRAIN"]),
                "test": data.placed(keys["DATASETS.TEST"]),
                "num_classes": keys.get("MODEL.ROI_HEADS.NUM_CLASSES", 80),  # detectron2's own
                "with_masks": keys.get("MODEL.MASK_ON", False),
            }
            if (study.name, name) in needed and str(pair) not in seen:
                if keys.get("TEST.EVALUATOR") != "detectron2":  # whose own catalog names the data
                    with _naming(f"{study.name}: the setting {name}"):
                        load_pair(**pair, strict=False, progress=True)
                seen.add(str(pair))


def show_what_is_left(studies: Sequence[StudyPlan], matrix: Matrix, output: Path) -> None:
    """Counts by kind, and the steps; encoders that nothing is said of."""
    for study in studies:
        used = {RANDOM, *(quantity.encoder for quantity in study.quantities)}
        if idle := [name for name in study.encoders if name not in used]:
            print(f"{study.name}: not run, as no claim or measure names it: {', '.join(idle)}")
    left = left_of(matrix, output)
    kinds = Counter(kind_of(piece) for piece in left)
    counts = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    steps = sum(piece.iterations for piece in left)
    print(f"{counted(len(left), 'piece')} of {len(matrix.pieces)} left in {output}", end="")
    print(f": {counts}; {steps:,} steps" if left else "", flush=True)


def kind_of(piece: Piece) -> str:
    """What a piece is, for people."""
    if piece.run is not None:
        return "detectors"
    return {"pretrain": "pre-trainings", "weights": "conversions"}.get(
        piece.folder.parent.name, "probes"
    )


def trials_left(matrix: Matrix, output: Path) -> list[str]:
    """The starts of encoders that have something left to run, in order of worth."""
    return list(dict.fromkeys(piece.trial for piece in left_of(matrix, output)))


def run_and_report(
    studies: Sequence[StudyPlan],
    matrix: Matrix,
    output: Path,
    slots: Sequence[Slot],
    *,
    budget: float | None,
    lean: bool,
    report: bool,
    title: str | None,
) -> int:
    """Run, judge, report; 0 if all is done or the time is up, 1 if something failed, 128 + N."""

    ended = took = 0.0

    def update() -> None:
        nonlocal ended, took
        begun = time.monotonic()
        # The next pieces wait for it: where they are short it is made less often.
        if report and begun - ended >= SPARINGLY * took:
            write_report(studies, matrix, output, title)
            ended = time.monotonic()
            took = ended - begun

    outcome = run_pieces(matrix, output, slots, budget=budget, lean=lean, on_row=update)
    if report:
        write_report(studies, matrix, output, title)
    for study in findings(studies, matrix, output):
        print("\n".join(lines(study)))
    if report and (output / "report.html").is_file():
        print(output / "report.html")
    others = dict.fromkeys(outcome.elsewhere, "another process runs it")
    for name, why in [*outcome.failed.items(), *outcome.stopped.items(), *others.items()]:
        print(f"not done: {name}: {why}", file=sys.stderr)
    left = left_of(matrix, output)
    if outcome.signal or outcome.out_of_time:
        print(f"stopped, {counted(len(left), 'piece')} left; the same command goes on from here")
        return 128 + outcome.signal if outcome.signal else 0
    return 1 if left else 0


def write_report(
    studies: Sequence[StudyPlan], matrix: Matrix, output: Path, title: str | None
) -> None:
    """report.html and .md, the hypotheses first; values.csv."""
    results, found = output / "results.jsonl", findings(studies, matrix, output)
    write_text(output / "values.csv", values_csv(found))
    try:
        files = [results] if results.is_file() else []
        make_report(files, output, title=title or studies[0].question, studies=found)
    except InputError as error:
        print(f"the report was not updated: {error}", file=sys.stderr)
