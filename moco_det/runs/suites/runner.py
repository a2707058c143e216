"""Running a matrix: one process a run, so that a run which fails takes nothing with it."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moco_det.foundation.atomic import make_folder, write_text
from moco_det.foundation.errors import InputError
from moco_det.results import append_row
from moco_det.runs.suites.failures import failed_row, last_words
from moco_det.runs.suites.matrix import Run
from moco_det.runs.suites.side_by_side import (
    GRACE_SECONDS,
    stop,
    terminated_like_interrupted,
    with_threads,
)
from moco_det.runs.suites.state import read_state

POLL_SECONDS = 0.5


@dataclass
class Outcome:
    """What a call of `run_matrix` did, by run name; `elsewhere` runs belong to another process."""

    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    elsewhere: list[str] = field(default_factory=list)
    stopped: bool = False


@dataclass
class Going:
    """A run in progress; what it says is in its console from the byte `console_start` on."""

    run: Run
    process: subprocess.Popen[bytes]
    gpus: tuple[str, ...]
    started: float
    claim: int
    console_start: int

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started


def run_matrix(
    runs: Sequence[Run],
    output: Path,
    *,
    train_command: Sequence[str],
    slots: Sequence[tuple[str, ...]] = ((),),
    watch: Callable[[Sequence[Going], Outcome], None] | None = None,
    on_row: Callable[[], None] | None = None,
) -> Outcome:
    """Run what has no finished row yet; returns when all has ended or Ctrl-C was pressed.

    `train_command` starts tools/train_net.py. Each of `slots` runs one run at a time and names the
    GPUs that it sees (none: the machine as it is); several slots share the cores. `watch` is called
    twice a second, `on_row` after runs that have ended, once the next ones are going. A run that
    fails leaves a failed row; a run that is stopped leaves its checkpoint and is gone on with next
    time. Two callers may share a folder: a run belongs to the one that claimed it first.
    """
    results = output / "results.jsonl"
    make_folder(output)
    for run in runs:
        write_text(run.config_file(output), run.setting.text)
    environment = with_threads(len(slots)) if len(slots) > 1 else os.environ
    outcome = Outcome()
    waiting = read_state(results, runs).left(runs)
    free = list(slots)
    going: list[Going] = []
    ended = False
    try:
        with terminated_like_interrupted():
            while waiting or going or ended:
                while waiting and free:
                    run = waiting.pop(0)
                    started = _start(run, output, free[0], train_command, environment)
                    if started is None:
                        outcome.elsewhere.append(run.name)
                    elif run.name in read_state(results, [run]).finished:
                        # Another process finished it between our reading and our claim.
                        started.process.kill()
                        started.process.wait()
                        os.close(started.claim)
                    else:
                        free.pop(0)
                        going.append(started)
                # Only now that the next runs go on: a report may take a minute.
                if ended and on_row is not None:
                    on_row()
                ended = False
                for one in [one for one in going if one.process.poll() is not None]:
                    going.remove(one)
                    free.append(one.gpus)
                    _record(one, output, results, outcome)
                    ended = True
                if watch is not None:
                    watch(going, outcome)
                if going:
                    time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        outcome.stopped = True
        _stop(going)
    except BaseException:
        _stop(going)
        raise
    return outcome


def _start(
    run: Run,
    output: Path,
    gpus: tuple[str, ...],
    train_command: Sequence[str],
    environment: Mapping[str, str],
) -> Going | None:
    """The run's process, or None where another process has the run."""
    folder = run.folder(output)
    make_folder(folder)
    claim = _claim(folder / ".claim")
    if claim is None:
        return None
    if gpus:
        environment = {**environment, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    options = run.options(output)
    command = [*train_command, "--num-gpus", str(max(1, len(gpus)))]
    if len(gpus) > 1:  # runs side by side must not meet at one port
        command += ["--dist-url", f"tcp://127.0.0.1:{_free_port()}"]
    command += options
    with (folder / "console.txt").open("ab") as console:
        console_start = console.tell()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C in the terminal reaches this process alone, which then stops the run.
                start_new_session=True,
                # Held by the run too: while either lives, nobody else starts it.
                pass_fds=(claim,),
            )
        except OSError as error:
            os.close(claim)
            raise InputError(f"cannot start {command[0]}: {error.strerror}") from error
    return Going(run, process, gpus, time.monotonic(), claim, console_start)


def _record(one: Going, output: Path, results: Path, outcome: Outcome) -> None:
    """Note how a run ended; a failed one gets its row here, since it could not write it."""
    name = one.run.name
    if name in read_state(results, [one.run]).finished:
        outcome.finished.append(name)
    else:
        code = one.process.returncode
        console = one.run.folder(output) / "console.txt"
        why = last_words(console, code, start=one.console_start)
        outcome.failed[name] = why
        append_row(results, failed_row(one.run, output, why, one.seconds))
    os.close(one.claim)


def _stop(going: Sequence[Going]) -> None:
    """Interrupt every run, wait for their last checkpoints, then end what is left by force."""
    if going:
        print(
            f"\nstopping {len(going)} run(s), at most {GRACE_SECONDS:.0f} s; "
            "the same command goes on from their checkpoints",
            file=sys.stderr,
        )
    stop([one.process for one in going])
    for one in going:
        os.close(one.claim)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _claim(path: Path) -> int | None:
    """An open file that is locked, None where another process holds the lock."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(handle)
            return None
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            os.close(handle)
            raise
        # A file system without locks: one runner at a time is then the user's business.
    return handle
