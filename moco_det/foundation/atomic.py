"""Files and folders that are either complete or absent."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import sys
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
def write_errors(path: str | Path) -> Iterator[None]:
    """A full disk and the like, while `path` is written, is an InputError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch's writer fails once more when it closes a file that was cut short
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, KeyboardInterrupt):
            raise cause from None
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror or cause
        raise InputError(f"cannot write {path}: {reason}; name another output") from error


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file under a temporary name that is synced and takes the place of `path` at the end.

    Where the block raises, `path` stays as it was; a full disk and the like is an InputError.
    """
    path = Path(path)
    partial = _partial(path)
    try:
        with write_errors(path):
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # none was made, as where the name is too long
            partial.unlink()


# Of the writers of other libraries: logs, TensorBoard's events, detectron2's checkpoints.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole text file, and the folder it lies in where that is absent."""
    make_folder(Path(path).parent)
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def append_line(path: str | Path, text: str) -> None:
    """Append one line, whole or not at all; any number of processes may do so at once.

    A torn last line of a killed writer is closed first so that it does not swallow this one.
    """
    line = text.encode("utf-8") + b"\n"
    with write_errors(path), open(path, "a+b", buffering=0) as file, locked(file):
        end = file.seek(0, os.SEEK_END)
        if end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n":
            line = b"\n" + line
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


class LogFile(logging.FileHandler):
    """log.txt, whose full disk ends the run in one line instead of a traceback per message."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        # what is left in the buffer would be written, and fail, once more at closing
        stream, self.stream = self.stream, None  # type: ignore[assignment]
        with contextlib.suppress(OSError):
            stream.close()  # type: ignore[union-attr]
        with write_errors(self.baseFilename):
            raise error


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
        with write_errors(path):
            yield partial
            if path.exists():
                path.rmdir()  # seen empty above; not every system renames onto a folder
            os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


@contextlib.contextmanager
def locked(file: IO[Any], mode: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold flock; a file system that has none still appends with O_APPEND's guarantee."""
    try:
        fcntl.flock(file, mode)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # as above: there was nothing to hold
            fcntl.flock(file, fcntl.LOCK_UN)


def try_lock(file: IO[Any] | int) -> bool:
    """Lock an open file unless another process holds it; True where the file system has no locks.

    The lock goes with the last process that has the file open.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True
