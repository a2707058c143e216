"""The endless stream of training batches, and its place in it.

The stream of indices is shuffle(all) + shuffle(all) + ... of one seeded generator; every sample's
own randomness is seeded by its position in that stream. So a batch depends on the seed and its
number alone: not on the workers, and not on whether the run was stopped and resumed before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from moco_det.data import Record
from moco_det.standalone.mapper import Mapper, Sample

# Up to here, counted in every worker, decoded images are kept: the data sets of small trials.
KEPT_BYTES = 2**28

Place = tuple[int, int]  # position in the stream, index of the record


@dataclass(eq=False)
class BatchStream(Sampler[list[Place]]):
    """Endless batches of (position, index), from batch number ``start`` on.

    With ``group_by_aspect`` a batch holds images that are all wider than high, or none.
    ``rank`` of ``world_size`` processes takes every ``world_size``-th position.
    """

    records: Sequence[Record]
    batch_size: int
    seed: int
    start: int = 0
    group_by_aspect: bool = True
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[list[Place]]:
        return itertools.islice(self.batches(), self.start, None)

    def indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield from torch.randperm(len(self.records), generator=generator).tolist()

    def batches(self) -> Iterator[list[Place]]:
        waiting: dict[bool, list[Place]] = {False: [], True: []}
        stream = itertools.islice(enumerate(self.indices()), self.rank, None, self.world_size)
        for position, index in stream:
            wide = self.records[index].width > self.records[index].height
            bucket = waiting[wide and self.group_by_aspect]
            bucket.append((position, index))
            if len(bucket) == self.batch_size:
                yield bucket[:]
                bucket.clear()


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
        collate_fn=list,  # images differ in size
        persistent_workers=workers > 0,
        # a loader draws the seeds of its workers, and must not draw them from the generator that
        # samples anchors: a resumed run starts a loader where one never stopped does not
        generator=torch.Generator().manual_seed(stream.seed),
    )


def usable(records: Sequence[Record]) -> list[Record]:
    """Records with at least one object that is not a crowd."""
    return [r for r in records if any(not a.iscrowd for a in r.annotations)]
