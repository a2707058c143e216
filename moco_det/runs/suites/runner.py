"""Running a matrix: one process per run, so that a run which fails takes nothing with it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moco_det.foundation.atomic import make_folder, write_text
from moco_det.foundation.commands import command
from moco_det.foundation.errors import InputError
from moco_det.foundation.folders import shared
from moco_det.foundation.stopping import Stopped
from moco_det.results import append_row
from moco_det.runs.row import RunRow, describe_engine, now, relative
from moco_det.runs.suites.matrix import Run
from moco_det.runs.suites.processes import (
    Job,
    RunningJob,
    Slot,
    claim_folder,
    run_in_slots,
    start_job,
    with_threads,
)
from moco_det.runs.suites.state import read_state

TRAIN = (sys.executable, "-m", "moco_det_tools.train_net")


@dataclass
class MatrixOutcome:
    """What a call of `run_matrix` did, by run name; `elsewhere` runs belong to another process.

    `stopped` runs were stopped alone, from outside; `signal` is what has stopped the call itself.
    """

    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)
    elsewhere: list[str] = field(default_factory=list)
    signal: int = 0


def run_matrix(
    runs: Sequence[Run],
    output: Path,
    *,
    train_command: Sequence[str] = TRAIN,
    slots: Sequence[Slot] = ((),),
    watch: Callable[[Sequence[RunningJob], MatrixOutcome], None] | None = None,
    on_row: Callable[[], None] | None = None,
) -> MatrixOutcome:
    """Run what has no finished row yet; returns when all has ended or a signal has stopped it.

    Each of `slots` runs one run at a time and names the GPUs that it sees (none: the machine as it
    is); several slots share the cores. `watch` is called twice a second, `on_row` after runs that
    have ended, once the next ones are running. A run that fails leaves a failed row; a run that is
    stopped leaves its checkpoint and no row, and is gone on with next time. Two callers may share
    a folder: a run belongs to the one that claimed it first.
    """
    results = output / "results.jsonl"
    make_folder(output)
    by_name = {run.name: run for run in runs}
    environment = with_threads(len(slots)) if len(slots) > 1 else dict(os.environ)
    outcome = MatrixOutcome()
    reported = 0

    def start(run: Run, gpus: Slot) -> RunningJob | None:
        folder = run.folder(output)
        claim = claim_folder(folder)
        if claim is None:
            outcome.elsewhere.append(run.name)
            return None
        # Another process may have finished it between our reading and our claim.
        if run.name in read_state(results, [run]).finished:
            os.close(claim)
            return None
        words = [*train_command, "--num-gpus", str(max(1, len(gpus))), *run.options(output)]
        job = Job(run.name, words, folder, run.setting.iterations)
        return start_job(job, gpus, environment, claim)

    def ended(one: RunningJob) -> None:
        run = by_name[one.job.name]
        if run.name in read_state(results, [run]).finished:
            outcome.finished.append(run.name)
            return
        if one.stopped:
            outcome.stopped[run.name] = one.stopped
            return
        outcome.failed[run.name] = why = one.last_words()
        row = failed_row(run, output, why, time.monotonic() - one.started)
        append_row(results, row.as_dict())

    def look(running: Sequence[RunningJob]) -> None:
        nonlocal reported
        # Only now that the next runs go on: a report may take a minute.
        rows = len(outcome.finished) + len(outcome.failed)
        if rows > reported and on_row is not None:
            on_row()
        reported = rows
        if watch is not None:
            watch(running, outcome)

    try:
        with shared(output, "configs"):
            for run in runs:
                make_folder(run.config_file(output).parent)
                write_text(run.config_file(output), run.setting.text)
            left = read_state(results, runs).left(runs)
            run_in_slots(left, slots, start=start, ended=ended, watch=look)
    except Stopped as stop:
        outcome.signal = stop.number
    return outcome


def read_slots(gpus: str | None, per_run: int, at_once: int) -> list[Slot]:
    """The groups of GPUs that runs are given, each `at_once` times; empty ones without GPUs."""
    if gpus is None:
        return [()] * at_once
    names = [part.strip() for part in gpus.split(",")]
    if not all(names) or len(set(names)) != len(names):
        raise InputError(f"--gpus {gpus!r}: write each GPU once, 0,1,2,3")
    if len(names) % per_run:
        raise InputError(f"--gpus {gpus}: {len(names)} GPUs do not divide into groups of {per_run}")
    return [tuple(names[i : i + per_run]) for i in range(0, len(names), per_run)] * at_once


def failed_row(run: Run, output: Path, why: str, seconds: float) -> RunRow:
    """The row of a run that could not write one; what only the run could have learned is null."""
    keys, weights = run.setting.keys, run.arm.weights
    sets = {part: keys[f"DATASETS.{part.upper()}"] for part in ("train", "test")}
    named = {part: x if isinstance(x, str) else "+".join(x) for part, x in sets.items()}
    unknown = ("train_fingerprint", "test_fingerprint", "train_images", "test_images", "classes")
    init = {"name": run.arm.name, "weights": weights.name if weights else None}
    return RunRow(
        run=run.name,
        task="box+mask" if keys.get("MODEL.MASK_ON") else "box",
        dataset={**named, **dict.fromkeys(unknown)},
        config_name=run.setting.name,
        config=run.setting.text,
        init={**init, "sha256": run.arm.sha256, "source": None, "verified": None},
        engine={**describe_engine(run.engine, run.version), "version": run.version or None},
        precision=None,
        seed=run.seed,
        iterations=run.setting.iterations,
        batch=run.setting.batch,
        wall_seconds=round(seconds, 3),
        hardware={"device": None, "cores": None},
        output_dir=relative(run.folder(output), output),
        command=command("train-net", *run.options(output)),
        started=now(),
        warnings=[],
        error=why,
    )
