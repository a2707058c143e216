"""Commands side by side: one process each, in slots that share the cores or have their own GPUs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeVar

from tqdm import tqdm

from moco_det.foundation.atomic import make_folder
from moco_det.foundation.errors import InputError
from moco_det.foundation.launching import cores

POLL_SECONDS = 0.5
# A stopped process may write its last checkpoint before it is ended by force.
GRACE_SECONDS = 20.0
# The exit code of a tool that was interrupted.
STOPPED = 130
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
) -> None:
    """Do all work, one piece per slot at a time.

    `start` may leave a piece out by None. `watch` is called twice a second, when the slots that
    became free are taken again, and once after all have ended. Ctrl-C, SIGTERM and an exception of
    the callbacks stop what is running, and are raised.
    """
    waiting, free = list(work), list(slots)
    running: list[RunningJob] = []
    try:
        with terminated_like_interrupted():
            while waiting or running:
                while waiting and free:
                    one = start(waiting.pop(0), free[0])
                    if one is not None:
                        free.pop(0)
                        running.append(one)
                watch(running)
                if running:
                    time.sleep(POLL_SECONDS)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    free.append(one.slot)
                    ended(one)
                    release(one)
            watch(running)
    except KeyboardInterrupt:
        said = f"\nstopping {len(running)} process(es), at most {GRACE_SECONDS:.0f} s; type the "
        print(f"{said}same command again to go on from their checkpoints", file=sys.stderr)
        raise
    finally:
        stop([one.process for one in running])
        for one in running:
            release(one)


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
        code = one.process.returncode
        if code < 0 or code == STOPPED:
            how = f"by signal {-code}" if code < 0 else "from outside"
            raise InputError(
                f"{one.job.name} was stopped {how}: type the same command again to go on from its "
                "last checkpoint"
            )
        if code:
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


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Turn SIGTERM, by which batch systems end a job, into the safe stop of Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def last_words(console: Path, code: int, *, start: int = 0) -> str:
    """Why a process ended, in a line: its error message, else its last line, else how it ended.

    The console holds every attempt at the job; `start` is the byte where this one began.
    """
    text = tail(console, _CONSOLE_TAIL, start=start)
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    for line in reversed(lines):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    ended = "no row was written" if code == 0 else f"exit code {code}"
    ended = f"ended by signal {-code}" if code < 0 else ended
    return f"{ended}: {lines[-1][:500]}" if lines else ended


def tail(path: Path, size: int, *, start: int = 0) -> str:
    """The end of a text file, from `start` at the earliest; nothing where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(start, file.seek(0, os.SEEK_END) - size))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
