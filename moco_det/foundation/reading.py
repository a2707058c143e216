"""Files that a user names: regular files within a limit of size, each opened once."""

from __future__ import annotations

import codecs
import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from moco_det.foundation.errors import InputError

# COCO's largest annotation file has 0.5 GB, Objects365's 6.
MOST_DATA = 8 << 30
# Labels of one image, a config, a list of classes.
MOST_LABELS = 64 << 20
# Several times what an image of MAX_PIXELS takes without compression.
MOST_IMAGE = 2 << 30

PIXELS_VARIABLE = "MOCO_DET_MAX_PIXELS"
# 384 MiB of RGB, more than any photo: a few kilobytes can unpack to all of the memory.
MAX_PIXELS = 2**27


def open_regular(path: str | Path, most: int | None = None) -> BinaryIO:
    """The open file; OSError for what is no regular file or has more than `most` bytes.

    Opened without waiting, then looked at: a pipe would block, and a name may change hands between
    a look and an opening.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError as error:  # NUL or a lone surrogate
        raise OSError(errno.EINVAL, str(error)) from None
    status, fault = os.fstat(descriptor), ""
    if stat.S_ISDIR(status.st_mode):
        fault = "it is a directory"
    elif not stat.S_ISREG(status.st_mode):
        fault = "it is not a regular file"
    elif most is not None and status.st_size > most:
        fault = f"it has {status.st_size:,} bytes, more than the {most:,} that are read"
    if fault:
        os.close(descriptor)
        raise OSError(errno.EINVAL, fault)
    return os.fdopen(descriptor, "rb")


def read_regular(path: str | Path, most: int) -> bytes:
    """The content of a file as `open_regular` opens it, of the size that it has then."""
    with open_regular(path, most) as file:
        try:
            return file.read(os.fstat(file.fileno()).st_size)
        except MemoryError:
            raise OSError(errno.ENOMEM, "no memory holds it") from None


def read_bytes(path: str | Path, what: str, most: int = MOST_DATA) -> bytes:
    """The content of a file, which errors call `what`; InputError where it cannot be read."""
    try:
        return read_regular(path, most)
    except FileNotFoundError:
        raise InputError(f"{what} {path} does not exist: check the path") from None
    except OSError as error:
        name = str(path).replace("\0", "\\0")
        raise InputError(f"{what} {name} cannot be read: {error.strerror}") from None


def read_text(path: str | Path, what: str, most: int = MOST_DATA) -> str:
    """The text of a file: UTF-8 or, where it is marked as such, UTF-16."""
    content = read_bytes(path, what, most)
    # PowerShell's ">" writes UTF-16 with its mark
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path} is not UTF-8 text ({error}): is it whole?") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | Path, what: str, most: int = MOST_DATA) -> Any:
    """The content of a json file."""
    text = read_text(path, what, most)
    try:
        return json.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"{what} {path} is not json ({reason}): is it whole?") from None


def max_pixels() -> int:
    """The most pixels of an image that is decoded, by the variable MOCO_DET_MAX_PIXELS."""
    text = os.environ.get(PIXELS_VARIABLE, str(MAX_PIXELS))
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:12]) <= 2**30:
        raise InputError(f"{PIXELS_VARIABLE} is {text[:40]!r}: set a number from 1 to {2**30}")
    return int(text)


def too_many_pixels(width: int, height: int) -> str | None:
    """Why an image of this size is not decoded, or None where it is."""
    most = max_pixels()
    if width * height <= most:
        return None
    return (
        f"{width} x {height} pixels are more than the {most} allowed: shrink it, or set "
        f"{PIXELS_VARIABLE}"
    )
