"""Commands side by side: one process each, in slots that share the cores or have their own GPUs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeVar

from tqdm import tqdm

from moco_det.foundation.atomic import make_folder, try_lock
from moco_det.foundation.errors import InputError
from moco_det.foundation.folders import CLAIM, open_lock
from moco_det.foundation.launching import cores
from moco_det.foundation.ranks import describe_exit
from moco_det.foundation.stopping import Stopped, asked, deferred, stopped_by

POLL_SECONDS = 0.5
# A stopped run ends its step and writes a checkpoint before it is killed: longer than a launcher
# gives its ranks, shorter than the notice that the job array asks for.
GRACE_SECONDS = 100.0
# Of a console that may hold a night's progress bars, and of a log that grows for days.
_CONSOLE_TAIL, _LOG_TAIL = 65536, 4096

Work = TypeVar("Work")
Slot = tuple[str, ...]  # the GPUs that a process sees; none: the machine as it is


@dataclass(frozen=True)
class Job:
    """A command that logs an `iteration` from 1 to `iterations` to `folder`/metrics.jsonl."""

    name: str
    command: Sequence[str]
    folder: Path
    iterations: int

    def iteration(self) -> int | None:
        """The newest iteration that is logged; None where there is none yet."""
        for line in reversed(tail(self.folder / "metrics.jsonl", _LOG_TAIL).split("\n")):
            try:
                return int(json.loads(line)["iteration"])
            except (ValueError, KeyError, TypeError):
                continue
        return None


@dataclass(frozen=True)
class RunningJob:
    """A job's process; what it says is in the console from the byte `console_start` on."""

    job: Job
    process: subprocess.Popen[bytes]
    slot: Slot
    started: float
    console_start: int
    claim: int | None  # the descriptor of a lock that the process holds too

    @property
    def stopped(self) -> str:
        """How it was stopped from outside, by a signal that is no crash; "" where it was not."""
        code = self.process.returncode
        number = stopped_by(code) or (signal.SIGKILL if code == -signal.SIGKILL else 0)
        return f"stopped by {signal.Signals(number).name}" if number else ""

    def last_words(self) -> str:
        """Why it ended."""
        console = self.job.folder / "console.txt"
        return last_words(console, self.process.returncode, start=self.console_start)


def with_threads(processes: int) -> dict[str, str]:
    """The environment of one of several processes on this machine: torch's share of the cores.

    Threads of several processes that wait for each other on the same cores are many times slower
    than one thread each. An OMP_NUM_THREADS that is set already stays.
    """
    return {"OMP_NUM_THREADS": str(max(1, cores() // processes)), **os.environ}


def start_job(
    job: Job, slot: Slot, environment: Mapping[str, str], claim: int | None = None
) -> RunningJob:
    """Start a job, its output appended to `folder`/console.txt."""
    make_folder(job.folder)
    if slot:
        environment = {**environment, "CUDA_VISIBLE_DEVICES": ",".join(slot)}
    with (job.folder / "console.txt").open("ab") as console:
        console_start = console.tell()
        process = subprocess.Popen(
            list(job.command),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C in the terminal reaches this process alone, which then stops the job.
            start_new_session=True,
            # Held by the job too: while either lives, nobody else starts it.
            pass_fds=() if claim is None else (claim,),
        )
    return RunningJob(job, process, slot, time.monotonic(), console_start, claim)


def run_in_slots(
    work: Iterable[Work],
    slots: Sequence[Slot],
    *,
    start: Callable[[Work, Slot], RunningJob | None],
    ended: Callable[[RunningJob], None],
    watch: Callable[[Sequence[RunningJob]], None],
    ready: Callable[[Work], bool] = lambda _: True,
) -> None:
    """Do all work, one piece per slot at a time, the first one that is `ready`.

    `start` may leave a piece out by None. `watch` is called twice a second, when the slots that
    became free are taken again, and once after all have ended. A signal to stop is passed on to
    what is running, and is a `Stopped` when that has ended; an exception of the callbacks
    terminates it, and is raised.
    """
    waiting, free = list(work), list(slots)
    running: list[RunningJob] = []
    with deferred():
        try:
            while waiting or running:
                if asked():
                    raise Stopped(asked())
                while free and (next_one := next(filter(ready, waiting), None)) is not None:
                    waiting.remove(next_one)
                    begun = start(next_one, free[0])
                    if begun is not None:
                        free.pop(0)
                        running.append(begun)
                watch(running)
                if running:
                    time.sleep(POLL_SECONDS)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    free.append(one.slot)
                    ended(one)
                    release(one)
            watch(running)
        except Stopped as stop:
            said = f"\nstopping {len(running)} process(es), at most {GRACE_SECONDS:.0f} s; type "
            print(f"{said}the same command again to go on from their checkpoints", file=sys.stderr)
            end([one.process for one in running], stop.number)
            raise
        finally:
            end([one.process for one in running], signal.SIGTERM)
            for one in running:
                release(one)


def claim_folder(folder: Path) -> int | None:
    """The descriptor of a lock on a job's folder, made; None where another process has it."""
    claim = open_lock(make_folder(folder) / CLAIM)
    if try_lock(claim):
        return claim
    os.close(claim)
    return None


def run_side_by_side(jobs: Sequence[Job], *, at_once: int, stream: TextIO | None = None) -> None:
    """Run all jobs, `at_once` at a time; their output goes to `folder`/console.txt.

    Raises InputError with a job's own last words where one fails, after the others are stopped,
    and `Stopped` where a signal has stopped all of them.
    """
    if not jobs:
        return
    slots = [()] * min(at_once, len(jobs))
    environment = with_threads(len(slots))
    steps = sum(job.iterations for job in jobs)
    bar = tqdm(total=steps, unit="step", file=stream, mininterval=5)

    def ended(one: RunningJob) -> None:
        if one.stopped:
            raise InputError(
                f"{one.job.name} was {one.stopped}: type the same command again to go on from its "
                "last checkpoint"
            )
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


def release(one: RunningJob) -> None:
    if one.claim is not None:
        os.close(one.claim)


def end(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    """Pass a signal on to the processes and wait for their checkpoints; their groups go with them.

    What is left is killed after GRACE_SECONDS, and at once by an exception: a second Ctrl-C.
    """
    try:
        for process in processes:
            process.send_signal(number)  # alone: a run ends its loader's workers itself
        until = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < until and any(p.poll() is None for p in processes):
            time.sleep(0.1)
    finally:
        for process in processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def last_words(console: Path, code: int, *, start: int = 0) -> str:
    """Why a process ended, in a line: its error message, else its last line, else how it ended.

    The console holds every attempt at the job; `start` is the byte where this one began.
    """
    text = tail(console, _CONSOLE_TAIL, start=start)
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    for line in reversed(lines):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    ended = describe_exit(code) if code else "no row was written"
    return f"{ended}: {lines[-1][:500]}" if lines else ended


def tail(path: Path, size: int, *, start: int = 0) -> str:
    """The end of a text file, from `start` at the earliest; nothing where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(start, file.seek(0, os.SEEK_END) - size))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
