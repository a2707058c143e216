"""A folder that one process at a time writes into, or several."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from moco_det.foundation.atomic import LogFile, make_folder, try_lock
from moco_det.foundation.errors import InputError

LOG, CLAIM = "log.txt", ".claim"

_claims: set[int] = set()  # descriptors of locks that this process holds


def open_lock(path: Path, *, key: str = "--output") -> int:
    """The descriptor of a file to lock, made where it is not there; a pipe is not waited for."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another {key}") from error


@contextmanager
def claimed(folder: Path, *, key: str = "OUTPUT_DIR") -> Iterator[None]:
    """The folder, made, and nobody else's until the block ends; InputError where it is taken.

    The lock is on log.txt and goes with this process, however that ends; what killed owners left
    half-written is removed. A new folder into which nothing was written goes again.
    """
    fresh = not folder.exists()
    log = make_folder(folder) / LOG
    descriptor = open_lock(log, key=key)
    try:
        if not try_lock(descriptor):
            raise InputError(
                f"another run is writing into {folder}: wait for its end, or choose another {key}"
            )
        _watch_forks()
        _claims.add(descriptor)
        remove_partials(folder)
        yield
    finally:
        if fresh and list(folder.glob("*")) == [log] and not log.stat().st_size:
            shutil.rmtree(folder)
        _claims.discard(descriptor)
        os.close(descriptor)


@contextmanager
def shared(folder: Path, *parts: str) -> Iterator[None]:
    """A folder that several processes may write into; one that is alone removes what was left.

    So it does in `parts`, folders in it.
    """
    with open(open_lock(folder / CLAIM), "ab") as file:
        if try_lock(file):
            for part in ("", *parts):
                remove_partials(folder / part)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder that is nobody else's."""
    for left in folder.glob(".*.partial"):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


@contextmanager
def logged(folder: Path, *names: str) -> Iterator[None]:
    """What these loggers say, appended to log.txt of the folder, too."""
    handler = LogFile(folder / LOG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


@cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_let_go)


def _let_go() -> None:
    """A worker outlives a killed run by seconds, in which the run may be resumed."""
    while _claims:
        os.close(_claims.pop())
