"""The matrix as a table in the terminal, drawn again as runs go on and rows arrive."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from moco_det.report.formats import duration, mean_std
from moco_det.report.statistics import summarise
from moco_det.runs.suites.matrix import Run
from moco_det.runs.suites.runner import Going, Outcome
from moco_det.runs.suites.side_by_side import last_iteration
from moco_det.runs.suites.state import State, cost_of, read_state

DRAW_SECONDS = 2.0


class LiveTable:
    """Shows a matrix; `watch` fits `run_matrix`. Where there is no terminal, one line an event."""

    def __init__(
        self, runs: Sequence[Run], output: Path, *, at_once: int, stream: TextIO | None = None
    ) -> None:
        self.runs, self.output, self.at_once = list(runs), output, at_once
        self.stream = stream or sys.stdout
        self.terminal = self.stream.isatty()
        self._drawn = 0
        self._next = 0.0
        self._said: set[str] = set()

    def watch(self, going: Sequence[Going], outcome: Outcome) -> None:
        """Draw the table again, at most every two seconds, or say what is new."""
        if not self.terminal:
            self._say(going, outcome)
            return
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + DRAW_SECONDS
        self.draw(going, outcome)

    def draw(self, going: Sequence[Going], outcome: Outcome) -> None:
        """The whole table, over the one before."""
        state = read_state(self.output / "results.jsonl", self.runs)
        lines = table_lines(
            self.runs, state, {one.run.name: progress(one, self.output) for one in going}, outcome
        )
        lines.append(time_left_line(self.runs, state, at_once=self.at_once))
        if self.terminal:
            lines = fitted(lines, shutil.get_terminal_size())
        if self.terminal and self._drawn:
            self.stream.write(f"\x1b[{self._drawn}A\x1b[J")
        self.stream.write("\n".join(lines) + "\n")
        self.stream.flush()
        self._drawn = len(lines)

    def _say(self, going: Sequence[Going], outcome: Outcome) -> None:
        for one in going:
            self._once(f"started   {one.run.setting.name} {one.run.name}")
        named = {run.name: run for run in self.runs}
        for name in outcome.finished:
            self._once(f"finished  {named[name].setting.name} {name}", left=True)
        for name, why in outcome.failed.items():
            self._once(f"failed    {named[name].setting.name} {name}: {why}", left=True)
        for name in outcome.elsewhere:
            self._once(f"elsewhere {named[name].setting.name} {name}: another process runs it")

    def _once(self, line: str, *, left: bool = False) -> None:
        if line in self._said:
            return
        self._said.add(line)
        self.stream.write(line + "\n")
        if left:
            state = read_state(self.output / "results.jsonl", self.runs)
            self.stream.write(time_left_line(self.runs, state, at_once=self.at_once) + "\n")
        self.stream.flush()


def fitted(lines: Sequence[str], size: os.terminal_size) -> list[str]:
    """Lines that a terminal shows without wrapping or scrolling: only those can be drawn over.

    Too wide lines are cut; of too many the last stay, under a line that counts the others.
    """
    room = max(2, size.lines - 1)  # the cursor stands in the line below
    kept = list(lines)
    if len(kept) > room:
        hidden = len(kept) - room + 1
        kept = [f"({hidden} lines above are not shown)", *kept[hidden:]]
    return [line if len(line) < size.columns else line[: size.columns - 2] + "…" for line in kept]


def table_lines(
    runs: Sequence[Run], state: State, going: Mapping[str, float | None], outcome: Outcome
) -> list[str]:
    """Settings and arms as lines: box AP so far, and a mark a seed."""
    seeds = sorted({run.seed for run in runs})
    lines: list[str] = []
    width = max((len(run.arm.name) for run in runs), default=0) + 2
    for setting in dict.fromkeys(run.setting.name for run in runs):
        members = [run for run in runs if run.setting.name == setting]
        lines.append(f"{setting}  ({members[0].setting.iterations:,} iterations)")
        for arm in dict.fromkeys(run.arm.name for run in members):
            cells = {run.seed: run for run in members if run.arm.name == arm}
            done = [state.finished.get(cells[seed].name) for seed in seeds if seed in cells]
            rows = [row for row in done if row is not None]
            summary = summarise(row.metric("bbox", "AP") for row in rows)
            marks = " ".join(_mark(cells.get(seed), state, going, outcome) for seed in seeds)
            value = mean_std(summary) if summary.n else "-"
            lines.append(f"  {arm:<{width}}{value:>14}  n={len(rows)}/{len(cells)}  {marks}")
    lines.append("  box AP, mean ± deviation; a mark a seed: + done, . waiting, x failed, % going")
    if outcome.elsewhere:
        lines.append("  ~ is run by another process; give the same command again when it has ended")
    return lines


def _mark(
    run: Run | None, state: State, going: Mapping[str, float | None], outcome: Outcome
) -> str:
    if run is None:
        return "  "
    if run.name in state.finished:
        return "+"
    if run.name in going:
        share = going[run.name]
        return "..%" if share is None else f"{100 * share:.0f}%"
    if run.name in outcome.failed or run.name in state.failed:
        return "x"
    return "~" if run.name in outcome.elsewhere else "."


def progress(one: Going, output: Path) -> float | None:
    """The share of its iterations that a run has logged, None before it has logged any."""
    done = last_iteration(one.run.folder(output))
    return None if done is None else min(1.0, done / one.run.setting.iterations)


def time_left_line(runs: Sequence[Run], state: State, *, at_once: int) -> str:
    """ "5 of 12 runs left, 800 of 1,920 iterations; about 7 min 30 s"."""
    cost = cost_of(runs, state, at_once=at_once)
    counts = (
        f"{cost.left} of {cost.runs} runs left, {cost.iterations_left:,} of "
        f"{cost.iterations:,} iterations"
    )
    if not cost.left:
        return f"all {cost.runs} runs are finished"
    if cost.seconds_left is None:
        return f"{counts}; hours are known after the first run"
    scaled = f" (scaled by images for {', '.join(cost.unmeasured)})" if cost.unmeasured else ""
    return f"{counts}; about {duration(cost.seconds_left)}{scaled}"
