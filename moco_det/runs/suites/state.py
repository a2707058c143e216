"""Where a matrix stands, and what the rest of it costs by the runs that were measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from moco_det.report.formats import duration
from moco_det.results import Row, read_rows
from moco_det.runs.suites.matrix import Run


@dataclass(frozen=True)
class MatrixState:
    """The matrix's rows: `finished` by run name; `failed` holds the last reason by run name."""

    finished: dict[str, Row]
    failed: dict[str, str]
    problems: tuple[str, ...]

    def left(self, runs: Sequence[Run]) -> list[Run]:
        """The runs without a finished row, in order."""
        return [run for run in runs if run.name not in self.finished]


def read_state(results: Path, runs: Sequence[Run]) -> MatrixState:
    """The rows of these runs; a results file that is not there yet is an empty one."""
    if not results.exists():
        return MatrixState({}, {}, ())
    read = read_rows([results])
    names = {run.name for run in runs}
    rows = {str(row.data["run"]): row for row in read.rows if not row.probe and row.finished}
    finished = {name: row for name, row in rows.items() if name in names}
    failed = {
        str(row.data["run"]): str(row.data["error"])
        for row in read.rows
        if not (row.probe or row.finished) and row.data["run"] in names - finished.keys()
    }
    return MatrixState(finished, failed, tuple(map(str, read.problems)))


def seconds_left(
    runs: Sequence[Run], state: MatrixState, *, at_once: int
) -> tuple[float | None, list[str]]:
    """Of the runs that are left, `at_once` of them side by side; None before any was measured.

    With it come the settings whose seconds are scaled, by images, from the measured ones.
    """
    per_image: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        if run.name in state.finished:
            seconds = float(state.finished[run.name].data["wall_seconds"])
            per_image[run.setting.name].append(seconds / max(1, run.setting.images))
    every = [value for values in per_image.values() for value in values]
    left = state.left(runs)
    if not every:
        return None, []
    total = sum(run.setting.images * fmean(per_image[run.setting.name] or every) for run in left)
    unmeasured = dict.fromkeys(r.setting.name for r in left if not per_image[r.setting.name])
    return total / min(at_once, max(1, len(left))), list(unmeasured)


def time_left_line(runs: Sequence[Run], state: MatrixState, *, at_once: int) -> str:
    """ "5 of 12 runs left, 800 of 1,920 iterations; about 7 min 30 s"."""
    left = state.left(runs)
    if not left:
        return f"all {len(runs)} runs are finished"
    counts = f"{len(left)} of {len(runs)} runs left, {iterations(left)} of {iterations(runs)}"
    seconds, unmeasured = seconds_left(runs, state, at_once=at_once)
    if seconds is None:
        return f"{counts} iterations; hours are known after the first run"
    scaled = f" (scaled by images for {', '.join(unmeasured)})" if unmeasured else ""
    return f"{counts} iterations; about {duration(seconds)}{scaled}"


def iterations(runs: Sequence[Run]) -> str:
    return f"{sum(run.setting.iterations for run in runs):,}"
