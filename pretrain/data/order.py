"""Which images come when: permutations of a set, and the shuffling of a stream."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from moco_det.foundation.errors import InputError
from pretrain import augment

Key = tuple[int, int]  # pass over the data, image
Item = TypeVar("Item")

# Random numbers of a stream are drawn for so many items at once.
DRAWN = 4096


def steps_per_epoch(images: int, batch: int) -> int:
    """Whole batches in one epoch; a set smaller than a batch makes one batch of several passes."""
    return max(1, images // batch)


def share_of(batch: int, world: int) -> int:
    """Rows of a global batch for each of `world` processes; InputError where they differ."""
    if batch % world:
        raise InputError(
            f"SOLVER.BATCH {batch} cannot be shared equally by {world} processes: make it a "
            f"multiple, such as {max(1, round(batch / world)) * world}"
        )
    return batch // world


@dataclass
class Steps:
    """Iterations start..stop-1 of training in epochs of `images`, and one process's share of them.

    Of the `world` processes, `rank` gets its rows [r * share, (r + 1) * share) of each global
    batch. `streams` is how many processes the run began with, 0 for `world`: shards are dealt to
    so many streams.
    """

    images: int
    batch: int
    _: KW_ONLY
    seed: int
    start: int
    stop: int
    rank: int = 0
    world: int = 1
    streams: int = 0

    def __post_init__(self) -> None:
        self.share = share_of(self.batch, self.world)
        self.epoch_steps = steps_per_epoch(self.images, self.batch)

    def __len__(self) -> int:
        return self.stop - self.start


class Order(Steps):
    """The batches as lists of (pass over the data, image).

    Every epoch is a new permutation and drops its last partial batch. The shares of all processes
    together are what one process would get.
    """

    def __iter__(self) -> Iterator[list[Key]]:
        current, keys = -1, np.empty((0, 2), dtype=np.int64)
        for iteration in range(self.start, self.stop):
            epoch, step = divmod(iteration, self.epoch_steps)
            if epoch != current:
                current, keys = epoch, self._epoch(epoch)
            first = step * self.batch + self.rank * self.share
            yield [(int(a), int(b)) for a, b in keys[first : first + self.share]]

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        passes = max(1, -(-self.batch // self.images))
        parts = []
        for number in range(epoch * passes, (epoch + 1) * passes):
            order = augment.generator(self.seed, number, key=1).permutation(self.images)
            parts.append(np.stack([np.full_like(order, number), order], axis=1))
        return np.concatenate(parts)


def shuffled(
    items: Iterable[Item], *, buffer: int, seed: tuple[int, ...], first: int = 0
) -> Iterator[Item]:
    """The items of a stream in random order, at most `buffer` of them waiting (half on average).

    Item i is put at i + buffer * u with u uniform in [0, 1): none moves by `buffer` or more
    places, and the order can be entered anywhere. `first` is the number of the first item given.
    Entered at output p, the items from max(0, p - buffer) on are needed and no others, and the
    first p - max(0, p - buffer) of what comes out was given out before.
    """
    waiting: list[tuple[float, int, Item]] = []
    drawn: list[float] = []
    for i, item in enumerate(items, first):
        if not drawn or i % DRAWN == 0:
            drawn = augment.generator(*seed, i // DRAWN).random(DRAWN).tolist()
        heapq.heappush(waiting, (i + buffer * drawn[i % DRAWN], i, item))
        while waiting and waiting[0][0] < i + 1:  # no later item can come before it
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]
