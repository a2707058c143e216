"""What the negatives are, and how they change after a step.

A dictionary is an nn.Module with two methods, so that the queue, a memory bank and in-batch keys
are siblings:

* `read(indices)` gives the negatives for the images `indices`: [K, C] shared or [N, K, C];
* `write(keys, indices)` takes the step's keys, after the step's loss has been back-propagated.

All state lies in buffers and so in `state_dict`.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dictionary(Protocol):
    """What a method asks of its dictionary."""

    def read(self, indices: Tensor | None = None) -> Tensor: ...

    def write(self, keys: Tensor, indices: Tensor | None = None) -> None: ...


class Queue(nn.Module):
    """The last `size` keys, first in first out (MoCo paper, Section 3.2).

    It starts with random unit vectors. Any number of keys may be written at once: writing wraps
    around the end, and of more than `size` keys only the last `size` stay.
    """

    keys: Tensor
    pointer: Tensor
    written: Tensor

    def __init__(self, dim: int, size: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if dim < 1 or size < 1:
            raise ValueError(f"a queue needs dim >= 1 and size >= 1, not {dim} and {size}")
        start = torch.randn(size, dim, generator=generator)
        self.register_buffer("keys", F.normalize(start, dim=1))  # K x C
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("written", torch.zeros((), dtype=torch.long))

    @property
    def size(self) -> int:
        """K, the number of negatives."""
        return self.keys.shape[0]

    @property
    def fill(self) -> float:
        """Share of the queue that holds real keys instead of the random start, 0..1."""
        return min(1.0, int(self.written) / self.size)

    def read(self, indices: Tensor | None = None) -> Tensor:
        """The negatives [K, C], the live buffer: back-propagate before the next `write`."""
        return self.keys

    @torch.no_grad()
    def write(self, keys: Tensor, indices: Tensor | None = None) -> None:
        """Replace the oldest keys by `keys` [N, C], in order."""
        size, start = self.size, int(self.pointer)
        kept = keys[-size:].to(self.keys.dtype)
        # The keys that are dropped from a batch longer than the queue still move the pointer.
        first = (start + len(keys) - len(kept)) % size
        until_end = min(len(kept), size - first)
        self.keys[first : first + until_end] = kept[:until_end]
        self.keys[: len(kept) - until_end] = kept[until_end:]
        self.pointer.fill_((start + len(keys)) % size)
        self.written.add_(len(keys))
