"""Stop means save: SIGTERM, SIGUSR1 and the first SIGINT wait for the end of the step.

A loop runs inside `deferred`, asks a `collectives.Agreement` after every step, saves, and raises
`Stopped`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
ONCE = (signal.SIGTERM, signal.SIGUSR1)  # what a scheduler sends, and may send again
T = TypeVar("T")

_seen: list[int] = []  # signals within `deferred`
_raised: list[int] = []  # signals within `raised`


class Stopped(KeyboardInterrupt):
    """A signal, ``number``, has ended the run; the tools exit with 128 + number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


def asked() -> int:
    """The signal that has asked this process to stop, 0 where none has or outside `deferred`."""
    return _seen[0] if _seen else 0


def until_asked(items: Iterable[T]) -> Iterator[T]:
    """The items; `Stopped` before the first one after a signal, for what is done again later."""
    for item in items:
        if number := asked():
            raise Stopped(number)
        yield item


def stopped_by(code: int) -> int:
    """The signal that stopped a process with this exit code (subprocess's), 0 where none did."""
    number = -code if code < 0 else code - 128
    return number if number in SIGNALS else 0


@contextmanager
def deferred() -> Iterator[None]:
    """Within the block signals only ask; a second SIGINT is a KeyboardInterrupt at once.

    In another than the main thread Python handles no signals, and nothing changes.
    """
    try:
        with _handled_by(_ask, SIGNALS):
            yield
    finally:
        _seen.clear()


@contextmanager
def raised() -> Iterator[None]:
    """Within the block SIGTERM and SIGUSR1 raise `Stopped` as Ctrl-C does: for what is no loop.

    The first one alone: the block has its end to come to. Another exception that follows a signal
    is `Stopped` too: a library has swallowed the first.
    """
    try:
        with _handled_by(_raise, SIGNALS):
            yield
    except Exception:
        if _raised:
            raise Stopped(_raised[0]) from None
        raise
    finally:
        _raised.clear()


def ignore_in_worker(worker: int = 0) -> None:
    """A DataLoader's worker_init_fn: a stop is the run's to handle, and ends its workers.

    A worker ends where the run says so, by a SIGTERM of its own sending, and within a second where
    the run has gone.
    """
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        told = signal.sigtimedwait({signal.SIGTERM}, 1)
        if told is not None and told.si_pid == parent:
            break
    os._exit(0)


def _ask(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        if number in _seen:
            raise KeyboardInterrupt
        with suppress(OSError):  # the terminal may have gone
            os.write(2, b"\nstopping after this step; Ctrl-C again ends at once\n")
    _seen.append(number)


def _raise(number: int, frame: FrameType | None) -> None:
    _raised.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    for one in ONCE:
        signal.signal(one, signal.SIG_IGN)
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
            over = _seen and handle is _raise and number in ONCE
            signal.signal(number, signal.SIG_IGN if over else handle)
