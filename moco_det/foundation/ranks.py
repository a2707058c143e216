"""The processes of one run on this machine: they start, are stopped, and end together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from moco_det.foundation import stopping
from moco_det.foundation.errors import InputError, ProcessDied
from moco_det.foundation.exhausted import as_input_error

# Until the others of a process that has died are killed: they may wait for it in a collective.
DEATH_SECONDS = 10.0
# And of one that was stopped: the main process may still write the checkpoint.
SAVE_SECONDS = 90.0
_FAILED, _STOPPED, _LOST = range(3)  # the first of them is why a run ended


class Ending(NamedTuple):
    """Why a process ended; of several the smallest is the cause of the others."""

    kind: int
    when: float
    error: BaseException


class Rank:
    """One process, and what it has said of its end."""

    def __init__(self, entry: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        context = multiprocessing.get_context("spawn")
        self.words, writer = context.Pipe(duplex=False)
        self.process = context.Process(target=_enter, args=(writer, os.getpid(), entry, arguments))
        self.process.start()
        writer.close()
        self.ending: Ending | None = None

    def look(self) -> None:
        """Whether it has ended badly, or is about to."""
        code = self.process.exitcode  # before its words: all were said by then
        if self.ending is None and self.words.poll():
            with suppress(EOFError):
                self.ending = Ending(*self.words.recv())
        if self.ending is None and code:
            stop = stopping.stopped_by(code)
            error = stopping.Stopped(stop) if stop else ProcessDied(describe_exit(code))
            self.ending = Ending(_STOPPED if stop else _FAILED, time.monotonic(), error)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def run_ranks(
    entry: Callable[..., None],
    arguments: tuple[Any, ...],
    *,
    processes: int,
    first: int,
    total: int,
) -> None:
    """Run ``entry(i, *arguments)`` in processes 0 to n-1, the ranks from ``first`` on.

    A signal to stop is passed on to each, once. Raises `Stopped` where they were stopped,
    InputError where one has raised it, and ProcessDied with the last words of one that has died,
    when all have ended.
    """
    ranks: list[Rank] = []
    with stopping.deferred():
        try:
            # Each process takes signals from where it can handle them.
            signal.pthread_sigmask(signal.SIG_BLOCK, stopping.SIGNALS)
            try:
                for local_rank in range(processes):
                    ranks.append(Rank(entry, (local_rank, *arguments)))
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping.SIGNALS)
            _wait(ranks)
        finally:
            for rank in ranks:
                rank.kill()
        asked = stopping.asked()
    endings = [(rank.ending, number) for number, rank in enumerate(ranks) if rank.ending]
    if not endings:
        return
    (kind, _, error), number = min(endings, key=lambda one: one[0][:2])
    if kind == _STOPPED:
        raise stopping.Stopped(asked) if asked else error
    if isinstance(error, ProcessDied):
        place = f"process {number + 1} of {processes} (rank {first + number} of {total})"
        raise ProcessDied(f"{place} died: {error}")
    raise error


def describe_exit(code: int) -> str:
    """How a process ended that has said nothing, by its exit code as subprocess has it."""
    if code >= 0:
        return f"exit code {code}"
    memory = " (most often memory has run out)" if code == -signal.SIGKILL else ""
    return f"killed by signal {-code}{memory}"


def _wait(ranks: list[Rank]) -> None:
    """Until all have ended, or have had their time since the first of them ended badly."""
    passed_on, until = False, float("inf")
    while True:
        running = [rank for rank in ranks if rank.process.is_alive()]
        for rank in ranks:  # also at those that have just ended
            rank.look()
        if not running:
            return
        if stopping.asked() and not passed_on:
            passed_on = True
            for rank in running:
                # Ctrl-C in a terminal reaches the ranks too, and a second SIGINT would end them.
                stop = signal.SIGTERM if stopping.asked() == signal.SIGINT else stopping.asked()
                if rank.process.is_alive():
                    os.kill(rank.process.pid or 0, stop)
        kinds = [rank.ending.kind for rank in ranks if rank.ending]
        if kinds:
            given = SAVE_SECONDS if set(kinds) == {_STOPPED} else DEATH_SECONDS
            until = min(until, time.monotonic() + given)
        if time.monotonic() > until:
            return
        wait([rank.process.sentinel for rank in running], timeout=0.2)


def _enter(
    words: Connection, launcher: int, entry: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    """The life of one process; its end is told before its connections to the others close."""
    import torch.multiprocessing as mp

    def tell(kind: int, error: Exception) -> None:
        words.send((kind, time.monotonic(), error))

    # A launcher that is killed stops its ranks.
    mp._prctl_pr_set_pdeathsig(signal.SIGTERM)  # type: ignore[attr-defined]
    with stopping.raised():
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping.SIGNALS)
            if os.getppid() != launcher:
                raise stopping.Stopped(signal.SIGTERM)
            entry(*arguments)
        except KeyboardInterrupt as error:
            sys.exit(128 + getattr(error, "number", signal.SIGINT))
        except ProcessDied as error:
            tell(_LOST, error)
            sys.exit(1)
        except Exception as error:
            if known := as_input_error(error):
                tell(_FAILED, InputError(str(known)[:2000]))
                sys.exit(2)
            traceback.print_exc()
            last = " ".join("".join(traceback.format_exception_only(error)).split())
            tell(_FAILED, ProcessDied(f"{last[:500]}; its traceback stands above"))
            sys.exit(1)
