"""Files and folders that are either complete or absent."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

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


def write_text(path: str | Path, text: str) -> None:
    """Write a whole text file under a temporary name, sync it, then rename it into place."""
    path = Path(path)
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
    except OSError as error:
        raise InputError(
            f"cannot make the folder {path} ({error.strerror}): name another output folder"
        ) from error
    try:
        yield partial
        if path.exists():
            path.rmdir()  # seen empty above; not every system renames onto a folder
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
