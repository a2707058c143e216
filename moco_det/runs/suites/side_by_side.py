"""Commands next to each other, one process each, with one line of progress for all of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from moco_det.foundation.errors import InputError
from moco_det.runs.suites.failures import last_words

POLL_SECONDS = 0.5
# How often a line is printed where there is no terminal to draw on.
LINE_SECONDS = 20.0
# A stopped process may write its last checkpoint before it is ended by force.
GRACE_SECONDS = 20.0
_TAIL_BYTES = 4096


@dataclass(frozen=True)
class Job:
    """A command that logs an `iteration` from 1 to `iterations` to `folder`/metrics.jsonl."""

    name: str
    command: Sequence[str]
    folder: Path
    iterations: int


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def with_threads(processes: int) -> dict[str, str]:
    """The environment of one of several processes on this machine: torch's share of the cores.

    Threads of several processes that wait for each other on the same cores are many times slower
    than one thread each. An OMP_NUM_THREADS that is set already stays.
    """
    share = max(1, cores() // processes)
    return {"OMP_NUM_THREADS": str(share), **os.environ}


def run_side_by_side(jobs: Sequence[Job], *, at_once: int, stream: TextIO | None = None) -> None:
    """Run all jobs, `at_once` at a time; their output goes to `folder`/console.txt.

    Raises InputError with a job's own last words where one fails, after the others are stopped;
    Ctrl-C and SIGTERM stop all of them and are a KeyboardInterrupt to the caller.
    """
    if not jobs:
        return
    stream = stream or sys.stdout
    waiting = list(jobs)
    going: list[tuple[Job, subprocess.Popen[bytes], int]] = []
    environment = with_threads(min(at_once, len(jobs)))
    progress = _Progress(jobs, stream)
    try:
        with terminated_like_interrupted():
            while waiting or going:
                while waiting and len(going) < at_once:
                    going.append(_start(waiting.pop(0), environment))
                for one in list(going):
                    job, process, start = one
                    code = process.poll()
                    if code is None:
                        continue
                    going.remove(one)
                    if code:
                        why = last_words(job.folder / "console.txt", code, start=start)
                        raise InputError(f"{job.name}: {why}")
                progress.show(last=not waiting and not going)
                if going:
                    time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        print(
            f"\nstopping {len(going)} processes, at most {GRACE_SECONDS:.0f} s; "
            "the same command goes on from their checkpoints",
            file=sys.stderr,
        )
        raise
    finally:
        stop([process for _, process, _ in going])


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt process groups, wait for their last checkpoints, then end them by force."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
        until = time.monotonic() + (GRACE_SECONDS if number == signal.SIGINT else 3.0)
        while time.monotonic() < until and any(p.poll() is None for p in processes):
            time.sleep(0.1)
    for process in processes:
        process.wait()


def _start(job: Job, environment: dict[str, str]) -> tuple[Job, subprocess.Popen[bytes], int]:
    """The job, its process, and the byte of console.txt where its output starts."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / "console.txt").open("ab") as console:
        start = console.tell()
        # Ctrl-C in the terminal reaches this process alone, which then stops the job.
        process = subprocess.Popen(
            list(job.command),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return job, process, start


def last_iteration(folder: Path) -> int | None:
    """The newest iteration in a folder's metrics.jsonl; None where nothing is logged yet."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            # Of a log that grows for days, the end has the newest iteration.
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        try:
            return int(json.loads(line)["iteration"])
        except (ValueError, KeyError, TypeError):
            continue
    return None


class _Progress:
    """One line: each job's iterations, and the time that the slowest needs from here."""

    def __init__(self, jobs: Sequence[Job], stream: TextIO) -> None:
        self.jobs, self.stream = jobs, stream
        self.begun: dict[str, tuple[float, int]] = {}
        self.next = 0.0

    def show(self, *, last: bool) -> None:
        terminal = self.stream.isatty()
        if not last and time.monotonic() < self.next:
            return
        self.next = time.monotonic() + (1.0 if terminal else LINE_SECONDS)
        parts, left = [], 0.0
        for job in self.jobs:
            done = last_iteration(job.folder) or 0
            parts.append(f"{job.name} {done:,}/{job.iterations:,}")
            left = max(left, self._seconds_left(job, done))
        line = ", ".join(parts) + (
            f"; about {int(left) // 60}:{int(left) % 60:02d} left" if left else ""
        )
        self.stream.write(f"\r\x1b[K{line}" if terminal else f"{line}\n")
        if terminal and last:
            self.stream.write("\n")
        self.stream.flush()

    def _seconds_left(self, job: Job, done: int) -> float:
        since, first = self.begun.setdefault(job.name, (time.monotonic(), done))
        if done == first:
            self.begun[job.name] = (time.monotonic(), done)  # it has not begun yet
            return 0.0
        return (time.monotonic() - since) / (done - first) * (job.iterations - done)


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Turn SIGTERM, by which batch systems end a job, into the safe stop of Ctrl-C."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
