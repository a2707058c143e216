"""A matrix on the terminal: what it costs before it runs, its table while it runs, its report."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from moco_det.foundation.errors import InputError
from moco_det.report import make_report
from moco_det.results import read_rows
from moco_det.runs.suites.live import LiveTable, table_lines
from moco_det.runs.suites.matrix import Run
from moco_det.runs.suites.processes import Slot
from moco_det.runs.suites.runner import MatrixOutcome, run_matrix
from moco_det.runs.suites.state import MatrixState, read_state, time_left_line


def show_cost(runs: Sequence[Run], state: MatrixState, output: Path, *, at_once: int) -> None:
    """The matrix and its cost, before anything runs."""
    print(f"{len(runs)} runs on {runs[0].engine}, {at_once} at a time, into {output}")
    print("\n".join(table_lines(runs, state, (), MatrixOutcome())))
    print(time_left_line(runs, state, at_once=at_once), flush=True)
    for problem in state.problems:
        print(f"warning: {problem}", file=sys.stderr)


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
    """Run, show, report; 0 if every run is finished, 1 if one failed or is left, 130 if stopped."""

    def update() -> None:
        if report:
            update_report(output, title)

    outcome = run_shown(runs, output, slots, update)
    update()
    for name, why in outcome.failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    if outcome.stopped:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
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
