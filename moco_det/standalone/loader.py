"""The endless stream of training batches, and its place in it.

The stream of indices is shuffle(all) + shuffle(all) + ... of one seeded generator; every sample's
own randomness is seeded by its position in that stream. So a batch depends on the seed and its
number alone: not on the workers, not on whether the run was stopped and resumed before it, and not
on how many processes share it now.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from moco_det.data import Record
from moco_det.foundation.stopping import ignore_in_worker
from moco_det.standalone.mapper import Mapper, Sample

# Up to here, counted in every worker, decoded images are kept: the data sets of small trials.
KEPT_BYTES = 2**28

Place = tuple[int, int]  # position in the stream, index of the record


@dataclass(eq=False)
class BatchStream(Sampler[list[Place]]):
    """Endless batches of (position, index), from batch number ``start`` on: one process's rows.

    A global batch has equal parts from ``streams`` streams, as many as there were processes when
    the run began. Stream c takes every ``streams``-th position; with ``group_by_aspect`` its part
    holds images that are all wider than high, or none. Rank r of W = ``world_size`` processes has
    the rows [r * batch_size / W, (r + 1) * batch_size / W).
    """

    records: Sequence[Record]
    batch_size: int
    seed: int
    start: int = 0
    group_by_aspect: bool = True
    streams: int = 1
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[list[Place]]:
        share = self.batch_size // self.world_size
        rows = slice(self.rank * share, (self.rank + 1) * share)
        return (batch[rows] for batch in itertools.islice(self.batches(), self.start, None))

    def indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield from torch.randperm(len(self.records), generator=generator).tolist()

    def batches(self) -> Iterator[list[Place]]:
        """The global batches."""
        waiting = defaultdict[tuple[int, bool], list[Place]](list)
        ready = [deque[list[Place]]() for _ in range(self.streams)]
        for position, index in enumerate(self.indices()):
            stream = position % self.streams
            wide = self.records[index].width > self.records[index].height
            key = stream, wide and self.group_by_aspect
            waiting[key].append((position, index))
            if len(waiting[key]) == self.batch_size // self.streams:
                ready[stream].append(waiting.pop(key))
                if all(ready):
                    yield [place for parts in ready for place in parts.popleft()]


@dataclass(eq=False)
class TrainingSamples(Dataset[Sample]):
    """Records by place in the stream, each transformed with the randomness of its place.

    With ``keep`` an image is read from disk once and then stays in memory.
    """

    records: Sequence[Record]
    mapper: Mapper
    seed: int
    keep: bool = False
    images: dict[int, npt.NDArray[np.uint8]] = field(default_factory=dict)

    def __getitem__(self, place: Place) -> Sample:
        position, index = place
        random = np.random.RandomState([self.seed & 0xFFFFFFFF, position & 0xFFFFFFFF])
        record = self.records[index]
        image = self.images.get(index)
        if image is None:
            image = self.mapper.read(record)
            if self.keep:
                self.images[index] = image
        return self.mapper(record, random, image)


def training_loader(
    records: Sequence[Record], mapper: Mapper, stream: BatchStream, *, workers: int
) -> DataLoader[Sample]:
    """Batches as lists of samples, in the order of the stream."""
    decoded = 3 * sum(record.height * record.width for record in records)
    return DataLoader(
        TrainingSamples(records, mapper, stream.seed, keep=decoded * max(workers, 1) <= KEPT_BYTES),
        batch_sampler=stream,
        num_workers=workers,
        worker_init_fn=ignore_in_worker,
        collate_fn=list,  # images differ in size
        persistent_workers=workers > 0,
        # a loader draws the seeds of its workers, and must not draw them from the generator that
        # samples anchors: a resumed run starts a loader where one never stopped does not
        generator=torch.Generator().manual_seed(stream.seed),
    )


def usable(records: Sequence[Record]) -> list[Record]:
    """Records with at least one object that is not a crowd."""
    return [r for r in records if any(not a.iscrowd for a in r.annotations)]
