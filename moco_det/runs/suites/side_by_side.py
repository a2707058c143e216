"""Jobs that all must succeed, side by side, with one line of progress for all of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from moco_det.foundation.errors import InputError
from moco_det.runs.suites.processes import Job, RunningJob, run_in_slots, start_job, with_threads

# How often a line is printed where there is no terminal to draw on.
LINE_SECONDS = 20.0


def run_side_by_side(jobs: Sequence[Job], *, at_once: int, stream: TextIO | None = None) -> None:
    """Run all jobs, `at_once` at a time; their output goes to `folder`/console.txt.

    Raises InputError with a job's own last words where one fails, after the others are stopped;
    Ctrl-C and SIGTERM stop all of them and are a KeyboardInterrupt to the caller.
    """
    if not jobs:
        return
    slots = [()] * min(at_once, len(jobs))
    environment = with_threads(len(slots))
    progress = ProgressLine(jobs, stream or sys.stdout)

    def ended(one: RunningJob) -> None:
        if one.process.returncode:
            raise InputError(f"{one.job.name}: {one.last_words()}")

    run_in_slots(
        jobs,
        slots,
        start=lambda job, slot: start_job(job, slot, environment),
        ended=ended,
        watch=progress.show,
    )
    progress.show((), last=True)


class ProgressLine:
    """Each job's iterations, and the time that the slowest needs from here."""

    def __init__(self, jobs: Sequence[Job], stream: TextIO) -> None:
        self.jobs, self.stream = jobs, stream
        self.begun: dict[str, tuple[float, int]] = {}
        self.next = 0.0

    def show(self, running: Sequence[RunningJob], *, last: bool = False) -> None:
        """Write the line where it is time to, or the last one."""
        terminal = self.stream.isatty()
        if not last and time.monotonic() < self.next:
            return
        self.next = time.monotonic() + (1.0 if terminal else LINE_SECONDS)
        done = {job.name: job.iteration() or 0 for job in self.jobs}
        line = ", ".join(f"{job.name} {done[job.name]:,}/{job.iterations:,}" for job in self.jobs)
        left = int(max(self._seconds_left(job, done[job.name]) for job in self.jobs))
        if left:
            line += f"; about {left // 60}:{left % 60:02d} left"
        end = "\n" if last or not terminal else ""
        self.stream.write(f"\r\x1b[K{line}{end}" if terminal else f"{line}{end}")
        self.stream.flush()

    def _seconds_left(self, job: Job, done: int) -> float:
        since, first = self.begun.setdefault(job.name, (time.monotonic(), done))
        if done == first:
            self.begun[job.name] = (time.monotonic(), done)  # it has not begun yet
            return 0.0
        return (time.monotonic() - since) / (done - first) * (job.iterations - done)
