"""Stop means save: SIGTERM, SIGUSR1 and the first SIGINT wait for the end of the step.

A loop runs inside `deferred`, asks a `collectives.Agreement` after every step, saves, and raises
`Stopped`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

_seen: list[int] = []  # signals since the outermost `deferred` began


class Stopped(KeyboardInterrupt):
    """A signal, ``number``, has ended the run; the tools exit with 128 + number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


def asked() -> int:
    """The signal that has asked this process to stop, 0 where none has."""
    return _seen[0] if _seen else 0


def stopped_by(code: int) -> int:
    """The signal that stopped a process with this exit code (subprocess's), 0 where none did."""
    number = -code if code < 0 else code - 128
    return number if number in SIGNALS else 0


@contextmanager
def deferred() -> Iterator[None]:
    """Within the block signals only ask; a second SIGINT is a KeyboardInterrupt at once.

    In another than the main thread Python handles no signals, and nothing changes.
    """
    _seen.clear()
    with _handled_by(_ask, SIGNALS):
        yield


@contextmanager
def raised() -> Iterator[None]:
    """Within the block SIGTERM and SIGUSR1 raise `Stopped` as Ctrl-C does: for what is no loop."""
    with _handled_by(_raise, (signal.SIGTERM, signal.SIGUSR1)):
        yield


def ignore_in_worker(worker: int = 0) -> None:
    """A DataLoader's worker_init_fn: a stop is the run's to handle, which ends its workers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _ask(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        if number in _seen:
            raise KeyboardInterrupt
        os.write(2, b"\nstopping after this step; Ctrl-C again ends at once\n")
    _seen.append(number)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


@contextmanager
def _handled_by(handler: Callable[..., Any], numbers: tuple[int, ...]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handle in before.items():
            signal.signal(number, handle)
