"""A matrix on the terminal: what it costs before it runs, its table while it runs, its report."""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from moco_det.foundation.commands import command
from moco_det.foundation.errors import InputError
from moco_det.report import make_report
from moco_det.report.formats import mean_std
from moco_det.report.statistics import summarise
from moco_det.results import read_rows
from moco_det.runs.suites.matrix import Run
from moco_det.runs.suites.processes import Job, RunningJob, Slot
from moco_det.runs.suites.runner import MatrixOutcome, run_matrix
from moco_det.runs.suites.state import MatrixState, read_state, time_left_line

DRAW_SECONDS = 2.0


class NewEvents:
    """What has begun and ended since it was last asked, a line each: for where no terminal is."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.labels = labels  # of what runs, by name
        self._said: set[str] = set()

    def lines(
        self, running: Sequence[RunningJob], outcome: MatrixOutcome, left: Callable[[], str]
    ) -> list[str]:
        """The new lines; `left` stands below what has ended."""
        full = self.labels
        ended = [f"finished  {full[name]}" for name in outcome.finished]
        ended += [f"failed    {full[name]}: {why}" for name, why in outcome.failed.items()]
        ended += [f"{why}  {full[name]}" for name, why in outcome.stopped.items()]
        others = [f"elsewhere {full[one]}: another process runs it" for one in outcome.elsewhere]
        others += [f"started   {full[one.job.name]}" for one in running]
        if new := self._new(ended):
            new.append(left())
        return new + self._new(others)

    def _new(self, lines: Sequence[str]) -> list[str]:
        new = [line for line in lines if line not in self._said]
        self._said.update(new)
        return new


class LiveTable:
    """Shows a matrix; `watch` fits `run_matrix`. Prints a line per event where no terminal is."""

    def __init__(
        self, runs: Sequence[Run], output: Path, *, at_once: int, stream: TextIO | None = None
    ) -> None:
        self.runs, self.output, self.at_once = list(runs), output, at_once
        self.stream = stream or sys.stdout
        self.terminal = self.stream.isatty()
        self._drawn = 0
        self._next = 0.0
        self.events = NewEvents({run.name: f"{run.setting.name} {run.name}" for run in self.runs})

    def watch(self, running: Sequence[RunningJob], outcome: MatrixOutcome) -> None:
        """Draw the table again, at most every two seconds, or say what is new."""
        if not self.terminal:
            for line in self.events.lines(running, outcome, self._left):
                print(line, file=self.stream, flush=True)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + DRAW_SECONDS
            self.draw(running, outcome)

    def draw(self, running: Sequence[RunningJob], outcome: MatrixOutcome) -> None:
        """The whole table, over the one before."""
        state = read_state(self.output / "results.jsonl", self.runs)
        lines = table_lines(self.runs, state, running, outcome)
        lines.append(time_left_line(self.runs, state, at_once=self.at_once))
        if self.terminal:
            lines = fitted(lines, shutil.get_terminal_size())
        over = f"\x1b[{self._drawn}A\x1b[J" if self.terminal and self._drawn else ""
        print(over + "\n".join(lines), file=self.stream, flush=True)
        self._drawn = len(lines)

    def _left(self) -> str:
        state = read_state(self.output / "results.jsonl", self.runs)
        return time_left_line(self.runs, state, at_once=self.at_once)


def fitted(lines: Sequence[str], size: os.terminal_size) -> list[str]:
    """Lines that a terminal shows without wrapping or scrolling: only those can be drawn over.

    Too wide lines are cut; of too many the last stay, under a line that counts the others.
    """
    room = max(2, size.lines - 1)  # the cursor stands in the line below
    hidden = len(lines) - room + 1
    kept = [f"({hidden} lines above are not shown)", *lines[hidden:]] if hidden > 1 else lines
    return [line if len(line) < size.columns else line[: size.columns - 2] + "…" for line in kept]


def table_lines(
    runs: Sequence[Run], state: MatrixState, running: Sequence[RunningJob], outcome: MatrixOutcome
) -> list[str]:
    """Settings and arms as lines: box AP so far, and one mark per seed."""
    marks = dict.fromkeys(outcome.elsewhere, "~")
    marks |= dict.fromkeys([*outcome.failed, *state.failed], "x")
    marks |= {one.job.name: share(one.job) for one in running}
    marks |= dict.fromkeys(state.finished, "+")
    seeds = sorted({run.seed for run in runs})
    lines: list[str] = []
    width = max((len(run.arm.name) for run in runs), default=0) + 2
    for setting in dict.fromkeys(run.setting.name for run in runs):
        members = [run for run in runs if run.setting.name == setting]
        lines.append(f"{setting}  ({members[0].setting.iterations:,} iterations)")
        for arm in dict.fromkeys(run.arm.name for run in members):
            cells = {run.seed: run.name for run in members if run.arm.name == arm}
            rows = [state.finished[name] for name in cells.values() if name in state.finished]
            summary = summarise(row.metric("bbox", "AP") for row in rows)
            value = mean_std(summary) if summary.n else "-"
            shown = [marks.get(cells[seed], ".") if seed in cells else "  " for seed in seeds]
            lines.append(
                f"  {arm:<{width}}{value:>14}  n={len(rows)}/{len(cells)}  {' '.join(shown)}"
            )
    lines.append("  box AP, mean ± deviation; per seed: + done, . waiting, x failed, % running")
    if outcome.elsewhere:
        lines.append("  ~ is run by another process; give the same command again when it has ended")
    return lines


def share(job: Job) -> str:
    """The share of its iterations that a run has logged, "..%" before it has logged any."""
    done = job.iteration()
    return "..%" if done is None else f"{min(100, 100 * done / job.iterations):.0f}%"


def show_cost(runs: Sequence[Run], state: MatrixState, output: Path, *, at_once: int) -> None:
    """The matrix and its cost, before anything runs."""
    print(f"{len(runs)} runs on {runs[0].engine}, {at_once} at a time, into {output}")
    print("\n".join(table_lines(runs, state, (), MatrixOutcome())))
    print(time_left_line(runs, state, at_once=at_once), flush=True)
    for problem in state.problems:
        print(f"warning: {problem}", file=sys.stderr)


def show_commands(left: Sequence[Run], given: Sequence[str]) -> None:
    """The command of each run for a shell, by a benchmark's own arguments; what runs wait for."""
    words = [word for word in given if word not in ("--dry-run", "--slurm")]
    for run in left:
        if not run.arm.absent:
            print(command("benchmark", *words, "--only", run.name))
    for name, file in {run.arm.name: run.arm.weights for run in left if run.arm.absent}.items():
        way_out = f"name it by --weights {name}=FILE, and its commands stand here"
        print(f"# {name}: {file} does not exist: {way_out}")


def run_shown(
    runs: Sequence[Run],
    output: Path,
    slots: Sequence[Slot],
    on_row: Callable[[], None] | None = None,
) -> MatrixOutcome:
    """`run_matrix` under its table."""
    table = LiveTable(runs, output, at_once=len(slots))
    outcome = run_matrix(runs, output, slots=slots, watch=table.watch, on_row=on_row)
    table.draw((), outcome)
    return outcome


def run_and_report(
    runs: Sequence[Run], output: Path, slots: Sequence[Slot], *, report: bool, title: str | None
) -> int:
    """Run, show, report; 0 if all runs are finished, 1 if some are left, 128 + N by signal N."""

    def update() -> None:
        if report:
            update_report(output, title)

    outcome = run_shown(runs, output, slots, update)
    if not outcome.signal:
        update()
    for name, why in outcome.failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    for name, why in outcome.stopped.items():
        print(f"{why}: {name}; the same command goes on with it", file=sys.stderr)
    if outcome.signal:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 128 + outcome.signal
    for path in (output / "report.html", output / "report.md"):
        if report and path.is_file():
            print(f"{path}  {path.stat().st_size / 1024:,.0f} KiB")
    return 1 if read_state(output / "results.jsonl", runs).left(runs) else 0


def update_report(output: Path, title: str | None) -> None:
    """The report of the rows so far; what is wrong with it does not stop the runs."""
    results = output / "results.jsonl"
    if not results.is_file() or not any(row.finished for row in read_rows([results]).rows):
        return
    try:
        make_report([results], output, title=title)
    except InputError as error:
        print(f"the report was not updated: {error}", file=sys.stderr)
    except Exception:
        # A fault of the report keeps its traceback, and must not end a night of training.
        traceback.print_exc()
        print("the report was not updated; the runs go on", file=sys.stderr)
