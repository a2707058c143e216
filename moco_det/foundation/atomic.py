"""Files and folders that are either complete or absent."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from moco_det.foundation.errors import InputError


def make_folder(path: str | Path) -> Path:
    """The folder, made with its parents where it is absent; InputError where that cannot be."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {path} ({error.strerror}): name another output folder"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"cannot write into the folder {path}: name another output folder")
    return path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file under a temporary name that is synced and takes the place of `path` at the end.

    Where the block raises, `path` stays as it was; a full disk and the like is an InputError.
    """
    path = Path(path)
    partial = _partial(path)
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        # torch's writer fails once more when it closes a file that a full disk has cut short
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror or cause
        raise InputError(f"cannot write {path}: {reason}; name another output") from error
    finally:
        with contextlib.suppress(OSError):  # none was made, as where the name is too long
            partial.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a whole text file, and the folder it lies in where that is absent."""
    make_folder(Path(path).parent)
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends without an exception.

    Raises InputError when `path` already holds something.
    """
    path = Path(path)
    if os.path.exists(path) and (not path.is_dir() or any(path.iterdir())):
        raise InputError(
            f"{path} already exists and is not an empty folder: remove it, or name another"
        )
    make_folder(path.parent)
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)
    try:
        yield partial
        if path.exists():
            path.rmdir()  # seen empty above; not every system renames onto a folder
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def try_lock(file: IO[Any] | int) -> bool:
    """Lock an open file unless another process holds it; True where the file system has no locks.

    The lock goes with the last process that has the file open.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True
