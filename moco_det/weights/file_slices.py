"""Pieces of a file that stay on the disk until somebody wants their bytes."""

from __future__ import annotations

import codecs
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import open_regular

BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class FileState:
    """Which file was opened, so that one that changes while it is read is noticed."""

    path: Path
    size: int
    modified: int
    changed: int  # of the inode: a program may set `modified` back, but not this
    inode: int

    @classmethod
    def of(cls, path: Path, status: os.stat_result) -> FileState:
        return cls(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    def check(self) -> None:
        """Raise InputError when the file is not the one that was opened."""
        try:
            same = FileState.of(self.path, os.stat(self.path)) == self
        except OSError:
            same = False
        if not same:
            raise InputError(
                f"{self.path} changed while it was read: wait until it is complete, then try again"
            )


def open_weights(path: Path) -> tuple[BinaryIO, FileState]:
    """An open file and its state; InputError for what is no readable regular file."""
    try:
        file = open_regular(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the name of the weights file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    return file, FileState.of(path, os.fstat(file.fileno()))


@dataclass(slots=True)
class FileSlice:
    """Bytes of a file, fetched on demand; `crc` (of all of them) is checked once where known."""

    state: FileState
    offset: int
    length: int
    crc: int | None = None
    checked: bool = field(default=False, compare=False)

    def read(self, start: int = 0, length: int | None = None) -> bytearray:
        """All bytes, or `length` of them from `start`; writable, so that torch can keep them."""
        length = self.length - start if length is None else length
        self.state.check()
        if length != self.length:
            self.check()
        data = bytearray(length)
        view = memoryview(data)
        with open(self.state.path, "rb", buffering=0) as file:
            file.seek(self.offset + start)
            while count := file.readinto(view):
                view = view[count:]
        self.state.check()
        if len(view):
            raise self.damaged()
        if length == self.length and self.crc is not None and not self.checked:
            self._compare(zlib.crc32(data))
        return data

    def check(self) -> None:
        """Compare the checksum without keeping the bytes."""
        if self.crc is None or self.checked:
            return
        left, checksum = self.length, 0
        with open(self.state.path, "rb", buffering=0) as file:
            file.seek(self.offset)
            while block := file.read(min(left, BLOCK)):
                left -= len(block)
                checksum = zlib.crc32(block, checksum)
        self._compare(checksum)

    def _compare(self, checksum: int) -> None:
        if checksum != self.crc:
            raise self.damaged()
        self.checked = True

    def damaged(self) -> InputError:
        return InputError(f"{self.state.path} is damaged (checksum): fetch or save it again")


@dataclass(frozen=True, slots=True)
class TextSlice:
    """Text too long for a name, left in the file: how old protocols spell an array's bytes.

    `codec` is one of Python's, or "quoted" for the backslashes between protocol 0's quotes.
    """

    place: FileSlice
    codec: str

    def read(self) -> bytes:
        """The text's characters as bytes (latin-1). Raises InputError where they are none."""
        data = self.place.read()
        try:
            if self.codec == "quoted":
                return codecs.escape_decode(data)[0]  # type: ignore[attr-defined]
            return data.decode(self.codec).encode("latin-1")
        except ValueError:
            raise self.place.damaged() from None
