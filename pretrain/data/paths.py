"""Millions of paths in two arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class PathList(Sequence[str]):
    """Paths below one folder, kept as one string of bytes and the places where they end.

    A list of strings costs three times as much, and every worker would come to own a copy of it:
    to look at a string changes its reference count, and so its memory page. Names that are
    absolute stand for themselves, as in os.path.join.
    """

    def __init__(self, root: str, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        small = len(ends) == 0 or ends[-1] < 2**32
        self.root = root
        self._text = b"".join(encoded)
        self._ends = ends.astype(np.uint32) if small else ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]  # negative numbers and IndexError as in a list
        begin = int(self._ends[i - 1]) if i else 0
        return os.path.join(self.root, os.fsdecode(self._text[begin : int(self._ends[i])]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash((self.root, self._text))

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return len(self._text) + self._ends.nbytes
