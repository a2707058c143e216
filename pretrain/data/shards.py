"""A stream of WebDataset shards as training data: shuffled, shared out, entered anywhere.

An epoch shuffles the shards, deals them to streams, and shuffles the images of a stream on their
way through a buffer. There are as many streams as there were processes when the run began, each
with its rows of every global batch. A process reads the streams that its rows come from, in one
background thread, and hands encoded images to the workers, which decode them and make the views: so
the batches are the same for any number of workers, and for any number of processes that go on.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, TypeVar

from torch.utils.data import Dataset
from tqdm import tqdm

from moco_det.foundation.errors import InputError
from pretrain import augment
from pretrain.data.order import Steps, share_of, shuffled
from pretrain.data.shard_files import Encoded, ShardList, count_samples, read_shard
from pretrain.data.views import NONE_OPENS, Bad, Sample, ViewSpec
from pretrain.images import CorruptImage, Image, decode
from pretrain.jpeg import DAMAGED, is_damaged

Item = TypeVar("Item")

READ_AHEAD = 2  # batches, by the thread that reads the shards


class Numbered(NamedTuple):
    """A sample and its place in an epoch, unlike any other stream's."""

    epoch: int
    number: int
    sample: Encoded


@dataclass
class StreamOrder(Steps):
    """The batches as lists of samples, still encoded.

    Of the `streams`, c gives the rows [c * part, (c + 1) * part) of each global batch. A process
    that needs rows of several reads them all; of one, it reads it whole and drops the other rows.

    An epoch is `images` long, whatever the shards hold: where a stream's shards have fewer than
    its part they start over, in a new order. At most `buffer` encoded images wait in memory for
    each stream that is read, half of that on average.

    To enter an epoch in its middle, shards that lie before are passed over by their count from the
    index; without one, by the headers of a local shard's members; an address is read through. In
    the shard of the place itself the members before it are read and dropped, and so are up to
    `buffer` images that were given out before.
    """

    _: KW_ONLY
    shards: ShardList
    buffer: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.streams = self.streams or self.world
        self.part = share_of(self.batch, self.streams)
        if len(self.shards.urls) < self.streams:
            raise InputError(
                f"DATA.PATH {self.shards.path} has {len(self.shards.urls)} shards for "
                f"{self.streams} processes, and each reads shards of its own: make more and "
                "smaller shards"
            )
        self._counts = dict(self.shards.counts)

    def __iter__(self) -> Iterator[list[Numbered]]:
        return read_ahead(self._batches(), READ_AHEAD)

    def _batches(self) -> Iterator[list[Numbered]]:
        first, part = self.rank * self.share, self.part
        mine = range(first // part, -(-(first + self.share) // part))  # streams
        first -= mine.start * part
        iteration = self.start
        while iteration < self.stop:
            epoch, step = divmod(iteration, self.epoch_steps)
            streams = [self._epoch(stream, epoch, step * part) for stream in mine]
            for _ in range(min(self.epoch_steps - step, self.stop - iteration)):
                rows = [one for samples in streams for one in itertools.islice(samples, part)]
                yield rows[first : first + self.share]
                iteration += 1

    def _epoch(self, stream: int, epoch: int, position: int) -> Iterator[Numbered]:
        """A stream's samples of an epoch in their random order, from `position` on."""
        first = max(0, position - self.buffer)  # see `shuffled`
        total = self.epoch_steps * self.part
        read = itertools.islice(self._stored_order(stream, epoch, first), total - first)
        seed = (self.seed, epoch, stream, self.streams)
        mixed = shuffled(read, buffer=self.buffer, seed=seed, first=first)
        return itertools.islice(mixed, position - first, None)

    def _stored_order(self, stream: int, epoch: int, first: int) -> Iterator[Numbered]:
        """Samples from `first` on, as they lie in the shards, without end."""
        number, skip = first, first
        bar = tqdm(desc="finding the place in the shards", total=first, unit="image", delay=5)
        for url in self._urls(stream, epoch):
            if skip and self._count(url) <= skip:
                skip -= self._count(url)
                bar.update(self._count(url))
                continue
            for sample in itertools.islice(self._read(url), skip, None):
                yield Numbered(epoch, number * self.streams + stream, sample)
                number += 1
            bar.close()
            skip = 0

    def _urls(self, stream: int, epoch: int) -> Iterator[str]:
        """A stream's shards, again and again, each time in a new order."""
        urls = self.shards.urls
        for lap in itertools.count():
            order = augment.generator(self.seed, epoch, lap, key=2).permutation(len(urls))
            mine = [urls[i] for i in order[stream :: self.streams]]
            yield from mine
            if not any(self._count(url) for url in mine):
                raise InputError(f"DATA.PATH {self.shards.path}: the shards hold no samples")

    def _count(self, url: str) -> int:
        if url not in self._counts:
            self._counts[url] = count_samples(url)
        return self._counts[url]

    def _read(self, url: str) -> Iterator[Encoded]:
        count = 0
        for sample in read_shard(url):
            count += 1
            yield sample
        if count != self._counts.setdefault(url, count):
            raise InputError(
                f"shard {url} holds {count} samples and its index says {self._counts[url]}: make "
                "the index anew"
            )


def read_ahead(items: Iterator[Item], depth: int) -> Iterator[Item]:
    """The items, `depth` of them made ahead in a thread; errors come out where they belong."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shards")
    end = object()
    try:
        waiting = deque(pool.submit(next, items, end) for _ in range(depth))
        while True:
            item = waiting.popleft().result()
            if item is end:
                return
            waiting.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@dataclass(eq=False)
class EncodedViews(Dataset[Sample]):
    """Views of encoded samples, a batch at a time; labels where the shards have classes."""

    spec: ViewSpec
    classes: int | None = None

    def __getitems__(self, keys: list[Numbered]) -> list[Sample]:
        """What the loader calls with a batch: it must stay whole where a sample is corrupt."""
        samples = []
        for row, key in enumerate(keys):
            bad: Bad = []
            image, label, number = self.spec.blank(), -1, NONE_OPENS
            for ahead in range(len(keys)):
                sample = keys[(row + ahead) % len(keys)].sample
                try:
                    image, label = self._open(sample)
                except CorruptImage as error:
                    bad.append((sample.name, str(error)))
                else:
                    number = key.number
                    if key.epoch == 0 and is_damaged(sample.data):
                        bad.append((sample.name, DAMAGED))
                    break
            samples.append((self.spec.make(image, key.epoch, key.number), number, label, bad))
        return samples

    def _open(self, sample: Encoded) -> tuple[Image, int]:
        if sample.fault:
            raise CorruptImage(sample.fault)
        label = -1
        if self.classes is not None:
            text = b"" if sample.cls is None else sample.cls.strip()
            label = int(text) if text.isdigit() else -1
            if not 0 <= label < self.classes:
                raise CorruptImage(f"its .cls is not a number from 0 to {self.classes - 1}")
        return decode(sample.data, shorter_side=self.spec.shorter_side), label
