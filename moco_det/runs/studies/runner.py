"""Running a study's pieces, and what their rows and logs say of its hypotheses."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

from moco_det.foundation.atomic import make_folder
from moco_det.foundation.errors import InputError
from moco_det.foundation.folders import shared
from moco_det.foundation.stopping import Stopped
from moco_det.report.formats import counted
from moco_det.report.hypotheses import Study, judge
from moco_det.report.training import read_log
from moco_det.results import Row, append_row, read_rows
from moco_det.results.claims import Quantity
from moco_det.runs.studies.pieces import Matrix, Piece, command_of
from moco_det.runs.studies.study import APS, LOGGED, StudyPlan
from moco_det.runs.suites.live import NewEvents
from moco_det.runs.suites.processes import (
    Job,
    RunningJob,
    Slot,
    claim_folder,
    run_in_slots,
    start_job,
    with_threads,
)
from moco_det.runs.suites.runner import MatrixOutcome, failed_row

A_FIFTH = 0.2  # of a pre-training's log: its last has the numbers, its first is the start


@dataclass
class StudyOutcome(MatrixOutcome):
    """What a call did, by piece; one is `stopped` also where what it needs is not there."""

    out_of_time: bool = False


class _OutOfTime(Exception):
    pass


def rows_of(output: Path) -> dict[str, Row]:
    """The finished rows of a study's folder by name."""
    file = output / "results.jsonl"
    rows = read_rows([file]).rows if file.is_file() else []
    return {str(row.data["run"]): row for row in rows if row.finished}


def left_of(matrix: Matrix, output: Path) -> list[Piece]:
    """The pieces that are not done, but for what was only made for others which are.

    So a study goes on from rows and logs also where its checkpoints were removed or left behind.
    """
    rows = rows_of(output)
    undone = {piece.name: piece for piece in matrix.pieces if not _done(piece, rows)}
    means = {name for piece in matrix.pieces for name in piece.needs}
    means -= set(matrix.measures.values())
    ends = [piece for piece in undone.values() if piece.name not in means]
    open_ = [piece for piece in ends if piece.file is None or logged(piece, "loss") is None]
    left = set()
    while open_:
        piece = open_.pop()
        left.add(piece.name)
        open_ += [undone[name] for name in piece.needs if name in undone and name not in left]
    return [piece for piece in matrix.pieces if piece.name in left]


def _done(piece: Piece, rows: Mapping[str, Row]) -> bool:
    return piece.name in rows if piece.file is None else piece.file.is_file()


def run_pieces(
    matrix: Matrix,
    output: Path,
    slots: Sequence[Slot],
    *,
    budget: float | None,
    lean: bool,
    on_row: Callable[[], None],
) -> StudyOutcome:
    """Run what is left, the most valuable first; returns when all has ended or the time is up.

    A piece waits for those that it needs and is left out where one has failed. After `budget`
    seconds, or a signal, what runs saves and stops; the same call goes on from there. `lean`
    removes what only a resume needs, and the detectors, when they are done. `on_row` is called
    after pieces that have ended.
    """
    outcome, begun = StudyOutcome(), time.monotonic()
    make_folder(output)
    pieces = {piece.name: piece for piece in matrix.pieces}
    left = left_of(matrix, output)
    for piece in matrix.pieces if lean else ():
        if piece not in left:
            _make_lean(piece)
    waiting, done = {piece.name for piece in left}, len(pieces) - len(left)
    environment = with_threads(len(slots)) if len(slots) > 1 else dict(os.environ)
    terminal = sys.stderr.isatty()
    bar = tqdm(
        total=len(pieces),
        initial=done,
        unit="piece",
        miniters=0,
        mininterval=2,
        disable=not terminal,
    )
    events = NewEvents({piece.name: f"{piece.folder.parent.name} {piece.name}" for piece in left})
    reported = 0

    def how_many_left() -> str:
        return f"{len(left) - len(outcome.finished)} of {counted(len(pieces), 'piece')} left"

    def lost(piece: Piece) -> bool:
        given_up = {*outcome.failed, *outcome.stopped, *outcome.elsewhere}
        return any(name in given_up for name in piece.needs)

    def ready(piece: Piece) -> bool:
        return lost(piece) or not any(name in waiting for name in piece.needs)

    def start(piece: Piece, slot: Slot) -> RunningJob | None:
        if lost(piece):
            outcome.stopped[piece.name] = "what it needs is not there"
            return None
        claim = claim_folder(piece.folder)
        if claim is None:
            outcome.elsewhere.append(piece.name)
            return None
        if _done(piece, rows_of(output)):
            os.close(claim)
            end(piece)
            return None
        try:
            words = command_of(piece, output)
        except InputError as error:
            os.close(claim)
            fail(piece, str(error))
            return None
        job = Job(piece.name, words, piece.folder, piece.iterations)
        return start_job(job, slot, environment, claim)

    def end(piece: Piece) -> None:
        waiting.discard(piece.name)
        outcome.finished.append(piece.name)
        if lean:
            _make_lean(piece)

    def ended(one: RunningJob) -> None:
        piece = pieces[one.job.name]
        if _done(piece, rows_of(output)):
            end(piece)
        elif one.stopped:
            outcome.stopped[piece.name] = one.stopped
        else:
            fail(piece, one.last_words())
            if piece.run is not None:
                why, seconds = outcome.failed[piece.name], time.monotonic() - one.started
                row = failed_row(piece.run, output, why, seconds)
                append_row(output / "results.jsonl", row.as_dict())

    def fail(piece: Piece, why: str) -> None:
        files = [pieces[name].file for name in piece.needs if name in pieces]
        if broken := [file for file in files if str(file) in why]:
            why += f"; it was made here: remove {broken[0]} and type the same command again"
        outcome.failed[piece.name] = why
        if terminal:
            tqdm.write(f"failed: {piece.name}: {why}", file=sys.stderr)

    def watch(running: Sequence[RunningJob]) -> None:
        nonlocal reported
        if terminal:
            bar.set_postfix_str(", ".join(map(_shown, running)), refresh=False)
            bar.update(done + len(outcome.finished) - bar.n)
        else:
            for line in events.lines(running, outcome, how_many_left):
                print(line, flush=True)
        if len(outcome.finished) > reported:
            reported = len(outcome.finished)
            on_row()
        if budget is not None and running and time.monotonic() - begun > budget:
            raise _OutOfTime

    try:
        with bar, shared(output, "configs"):
            run_in_slots(left, slots, start=start, ended=ended, watch=watch, ready=ready)
    except Stopped as stop:
        outcome.signal = stop.number
    except _OutOfTime:
        outcome.out_of_time = True
    return outcome


def _make_lean(piece: Piece) -> None:
    for pattern in ("model_*.pth", "checkpoint_*.pth", "probe.pth"):
        for file in piece.folder.glob(pattern):
            file.unlink(missing_ok=True)


def _shown(one: RunningJob) -> str:
    done, job = one.job.iteration(), one.job
    share = f" {100 * done / job.iterations:.0f}%" if done and job.iterations else ""
    return job.name.rpartition("_")[0] + share


def findings(studies: Sequence[StudyPlan], matrix: Matrix, output: Path) -> list[Study]:
    """What the rows and logs so far say of every hypothesis."""
    rows = rows_of(output)
    pieces = {piece.name: piece for piece in matrix.pieces}
    found = []
    for study in studies:
        values: dict[Quantity, dict[int, float]] = {q: {} for q in study.quantities}
        ap50: dict[Quantity, dict[int, float]] = {q: {} for q in values if q.metric in APS}
        for (name, quantity, seed), piece in matrix.measures.items():
            if name != study.name or quantity not in values:
                continue
            if quantity.metric in LOGGED:
                value = logged(pieces[piece], quantity.metric) if piece in pieces else None
            else:
                row = rows.get(piece)
                where = APS.get(quantity.metric, ("probe", "top1"))
                value = None if row is None else row.metric(*where)
                reached = None if row is None else row.metric(where[0], "AP50")
                if reached is not None:  # of a detector
                    ap50[quantity][seed] = reached
            if value is not None:
                values[quantity][seed] = value
        judged = [judge(hypothesis, values, ap50) for hypothesis in study.hypotheses]
        encoders = {name: encoder.said for name, encoder in study.encoders.items()}
        own = [name for (whose, *_), name in matrix.measures.items() if whose == study.name]
        warned = _warnings(
            dict.fromkeys(pieces[name].trial for name in own if name in pieces), output
        )
        found.append(
            Study(study.name, study.question, study.source, judged, values, encoders, warned)
        )
    return found


def _warnings(trials: Iterable[str], output: Path) -> list[str]:
    """What the logs of pre-trainings warned of, once per encoder."""
    said = []
    for trial in trials:
        log = output / "pretrain" / trial / "log.txt"
        for line in log.read_text(errors="replace").splitlines() if log.is_file() else ():
            _, warned, what = line.partition(" WARNING ")
            if warned:
                said.append(f"{trial.rpartition('_seed')[0]}: {what}")
    return list(dict.fromkeys(said))


def logged(piece: Piece, metric: str) -> float | None:
    """A number of a finished pre-training: the mean loss or accuracy of its log's last fifth.

    "jitter" is what the loss changes by from one line of the log to the next, but for the first
    fifth, in which it leaves chance: the root of half the mean square, which for noise without a
    trend is its deviation.
    """
    log = read_log(piece.folder / "metrics.jsonl") or []
    if not log or log[-1]["iteration"] < piece.iterations:
        return None
    name = "loss" if metric == "jitter" else metric
    series = [float(entry[name]) for entry in log if isinstance(entry.get(name), float | int)]
    if len(series) < 2:
        return None
    part = round(A_FIFTH * len(series))
    if metric == "jitter":
        return (fmean((b - a) ** 2 for a, b in pairwise(series[part:])) / 2) ** 0.5
    return fmean(series[-max(1, part) :])
