"""A folder that one process at a time writes into."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moco_det.foundation.atomic import make_folder, try_lock
from moco_det.foundation.errors import InputError

_claims: set[int] = set()  # descriptors of locks that this process holds


@contextmanager
def claimed(folder: Path, *, key: str = "OUTPUT_DIR") -> Iterator[None]:
    """The folder, made, and nobody else's until the block ends; InputError where it is taken.

    The lock is on log.txt and goes with this process, however that ends; what killed owners left
    half-written is removed.
    """
    make_folder(folder)
    descriptor = os.open(folder / "log.txt", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not try_lock(descriptor):
            raise InputError(
                f"another run is writing into {folder}: wait for its end, or choose another {key}"
            )
        if not _claims:
            os.register_at_fork(after_in_child=_let_go)
        _claims.add(descriptor)
        for left in folder.glob(".*.partial"):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        yield
    finally:
        _claims.discard(descriptor)
        os.close(descriptor)


def _let_go() -> None:
    """A worker outlives a killed run by seconds, in which the run may be resumed."""
    while _claims:
        os.close(_claims.pop())
