"""A tool run in a child of this process: started, watched within limits, killed, and judged.

This process has imported torch and the tools and starts no thread, so that a child is a tool in
20 ms and not in 6 s. It is never part of a test's process: tests start it as a program.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import logging
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from moco_det_tools import cli

IDLE = 6.0  # seconds without any CPU time after which a child is said to hang
GIB = 2**30


@dataclass(frozen=True)
class Limits:
    """What a child may take; `wall` is for one that computes on a busy machine."""

    memory: int = 8 * GIB  # of addresses, 4 of which are this process's own
    cpu: int = 20
    wall: float = 120.0


@dataclass(frozen=True)
class Ended:
    """A child that has ended: `code` as a shell counts, 128 + signal; `stopped` why by us."""

    code: int
    out: str
    err: str
    seconds: float
    cpu: float
    peak_mib: int
    stopped: str

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent" in self.out + self.err


class Attempt:
    """A running child, the leader of its own process group."""

    def __init__(
        self,
        argv: Sequence[str],
        folder: Path,
        *,
        prepare: Callable[[], None] = lambda: None,
        limits: Limits = Limits(),
    ) -> None:
        self.limits, self.begun = limits, time.monotonic()
        self.streams = [folder / "stdout", folder / "stderr"]
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _be_the_tool(argv, folder, self.streams, prepare, limits)

    def running(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def send(self, number: int, *, group: bool) -> None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def end(self) -> Ended:
        """Wait for the end, or bring it about where the child hangs or takes too long."""
        stopped, last, since = "", -1.0, time.monotonic()
        pause = 0.002
        while self.running():
            time.sleep(pause := min(0.2, pause * 1.3))
            now = time.monotonic()
            if pause < 0.2:
                continue
            used = _cpu_of_family(self.pid)
            if used > last:
                last, since = used, now
            if now - since > IDLE:
                stopped = f"hangs: no CPU time in {IDLE:g} s"
            elif now - self.begun > self.limits.wall:
                stopped = f"takes more than {self.limits.wall:g} s"
            if stopped:
                break
        if stopped:
            self.send(signal.SIGKILL, group=True)
        _, status, used_by = os.wait4(self.pid, 0)
        seconds = time.monotonic() - self.begun
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGXCPU:
            stopped = f"takes more than {self.limits.cpu} s of CPU"
        out, err = (path.read_text(errors="replace") for path in self.streams)
        return Ended(
            code if code >= 0 else 128 - code,
            out,
            err,
            seconds,
            used_by.ru_utime + used_by.ru_stime,
            used_by.ru_maxrss // 1024,
            stopped,
        )

    def left_behind(self, patience: float = 5.0) -> bool:
        """Whether processes of an ended child go on; they are ended here."""
        until = time.monotonic() + patience
        while time.monotonic() < until:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return False
            time.sleep(0.05)
        self.send(signal.SIGKILL, group=True)
        return True


def import_tools() -> None:
    """What a tool imports when it runs, so that no child waits for it."""
    for name in cli.COMMANDS:
        importlib.import_module(f"moco_det_tools.{name.replace('-', '_')}")
    for name in ("pretrain.train", "moco_det.runs.run", "moco_det.standalone.engine"):
        importlib.import_module(name)
    with contextlib.suppress(ImportError):
        importlib.import_module("moco_det.plugin.engine")
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        sys.exit(f"{threads} threads would be lost in a fork: set OMP_NUM_THREADS=1")


def _be_the_tool(
    argv: Sequence[str],
    folder: Path,
    streams: Sequence[Path],
    prepare: Callable[[], None],
    limits: Limits,
) -> None:
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in enumerate(streams, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
        logging.root.handlers.clear()
        os.chdir(folder)
        # tqdm's own lock is one for all children: killed, one that holds it would stop the others
        tqdm.set_lock(threading.RLock())
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))
        resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu, limits.cpu + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        prepare()
        code = cli.main(list(argv))
    except KeyboardInterrupt:  # before the tool has begun, as while the interpreter starts
        code = 130
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # as the interpreter ends a program
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _cpu_of_family(ancestor: int) -> float:
    """CPU time of a process and what it has started, in clock ticks."""
    parents, used = {}, {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            parents[int(name)] = int(fields[1])
            used[int(name)] = sum(map(int, fields[11:15]))
    total = 0.0
    for process in used:
        above = process
        while above > 1 and above != ancestor:
            above = parents.get(above, 0)
        total += used[process] if above == ancestor else 0
    return total


def seeds_of(text: str) -> range:
    """`0:100` as the seeds 0 to 99."""
    first, _, last = text.partition(":")
    return range(int(first), int(last or int(first) + 1))
