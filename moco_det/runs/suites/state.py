"""Where a matrix stands, and what the rest of it costs by the runs that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moco_det.foundation.errors import InputError
from moco_det.results import Row, read_rows
from moco_det.runs.suites.matrix import Run


@dataclass(frozen=True)
class State:
    """The matrix's rows: `finished` by run name; `failed` holds the last reason by run name."""

    finished: dict[str, Row]
    failed: dict[str, str]
    problems: tuple[str, ...]

    def left(self, runs: Sequence[Run]) -> list[Run]:
        """The runs without a finished row, in order."""
        return [run for run in runs if run.name not in self.finished]


@dataclass(frozen=True)
class Cost:
    """What is left; seconds are None before any run of the matrix was measured.

    `unmeasured` are the settings whose seconds are scaled, by images, from the measured ones.
    """

    runs: int
    left: int
    iterations: int
    iterations_left: int
    seconds_left: float | None
    unmeasured: tuple[str, ...]


def read_state(results: Path, runs: Sequence[Run]) -> State:
    """The rows of these runs; a results file that is not there yet is an empty one."""
    if not results.exists():
        return State({}, {}, ())
    read = read_rows([results])
    names = {run.name for run in runs}
    finished: dict[str, Row] = {}
    failed: dict[str, str] = {}
    for row in read.rows:
        name = str(row.data["run"])
        if row.probe or name not in names:
            continue
        if row.finished:
            finished[name] = row
        else:
            failed[name] = str(row.data["error"])
    return State(
        finished=finished,
        failed={name: why for name, why in failed.items() if name not in finished},
        problems=tuple(map(str, read.problems)),
    )


def cost_of(runs: Sequence[Run], state: State, *, at_once: int = 1) -> Cost:
    """Iterations and hours of the runs that are left, `at_once` of them side by side."""
    if at_once < 1:
        raise InputError(f"{at_once} runs at once: at least one")
    per_image: dict[str, list[float]] = {}
    for run in runs:
        row = state.finished.get(run.name)
        if row is not None:
            images = max(1, run.setting.iterations * run.setting.batch)
            per_image.setdefault(run.setting.name, []).append(
                float(row.data["wall_seconds"]) / images
            )
    left = state.left(runs)
    every = [value for values in per_image.values() for value in values]
    seconds: float | None = None
    unmeasured: dict[str, None] = {}
    if every:
        seconds = 0.0
        for run in left:
            measured = per_image.get(run.setting.name)
            if not measured:
                unmeasured[run.setting.name] = None
                measured = every
            images = run.setting.iterations * run.setting.batch
            seconds += images * sum(measured) / len(measured)
        seconds /= min(at_once, max(1, len(left)))
    return Cost(
        runs=len(runs),
        left=len(left),
        iterations=sum(run.setting.iterations for run in runs),
        iterations_left=sum(run.setting.iterations for run in left),
        seconds_left=seconds,
        unmeasured=tuple(unmeasured),
    )
