"""Jobs that all must succeed, side by side, with one bar of progress for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from tqdm import tqdm

from moco_det.foundation.errors import InputError
from moco_det.runs.suites.processes import Job, RunningJob, run_in_slots, start_job, with_threads


def run_side_by_side(jobs: Sequence[Job], *, at_once: int, stream: TextIO | None = None) -> None:
    """Run all jobs, `at_once` at a time; their output goes to `folder`/console.txt.

    Raises InputError with a job's own last words where one fails, after the others are stopped;
    Ctrl-C and SIGTERM stop all of them and are a KeyboardInterrupt to the caller.
    """
    if not jobs:
        return
    slots = [()] * min(at_once, len(jobs))
    environment = with_threads(len(slots))
    steps = sum(job.iterations for job in jobs)
    bar = tqdm(total=steps, unit="step", file=stream, mininterval=5)

    def ended(one: RunningJob) -> None:
        if one.process.returncode:
            raise InputError(f"{one.job.name}: {one.last_words()}")

    def watch(running: Sequence[RunningJob]) -> None:
        done = {job.name: job.iteration() or 0 for job in jobs}
        shown = ", ".join(f"{job.name} {done[job.name]:,}/{job.iterations:,}" for job in jobs)
        bar.set_postfix_str(shown, refresh=not running)
        bar.update(sum(done.values()) - bar.n)

    with bar:
        run_in_slots(
            jobs,
            slots,
            start=lambda job, slot: start_job(job, slot, environment),
            ended=ended,
            watch=watch,
        )
