"""Numbered images to their random views; the cache of decoded images."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset
from tqdm import tqdm

from pretrain import augment
from pretrain.augment import Recipe
from pretrain.data.corrupt import CorruptCount
from pretrain.data.listing import ImageList
from pretrain.data.order import Key
from pretrain.images import CorruptImage, Image, read_image
from pretrain.jpeg import DAMAGED

# How many other images are tried in place of one that does not open.
REPLACEMENTS = 100
THREADS = 16  # at most, that decode

Item = TypeVar("Item")
Result = TypeVar("Result")
Bad = list[tuple[str, str]]  # names of what did not open, and why
Sample = tuple[NDArray[Any], int, int, Bad]  # views, image, label, what did not open

NONE_OPENS = -1  # stands for the number of an image where no replacement opened either


@dataclass(frozen=True)
class ViewSpec:
    """How many views are made of an image, of which side, and of what chance.

    An image is shrunk to `shorter_side` when it is read, 0 leaves it as it is.
    """

    recipe: Recipe
    size: int
    views: int
    seed: int
    shorter_side: int = 0

    def make(self, image: Image, epoch: int, number: int) -> NDArray[Any]:
        """The views [V, S, S, 3] of an image in one pass over the data."""
        rng = augment.generator(self.seed, epoch, number)
        return augment.views(image, self.recipe, size=self.size, count=self.views, rng=rng)

    def blank(self) -> Image:
        return np.zeros((self.size, self.size, 3), np.uint8)


@dataclass(eq=False)
class ViewSet(Dataset[Sample]):
    """Views of images by (pass over the data, image index); cached images are decoded once."""

    images: ImageList
    spec: ViewSpec
    cache: Sequence[Image | str] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        image, used, bad = self._read(index, look=epoch == 0)
        label = -1 if self.images.labels is None else int(self.images.labels[used])
        return self.spec.make(image, epoch, index), used, label, bad

    def _read(self, index: int, *, look: bool) -> tuple[Image, int, Bad]:
        """The image, or the next one that opens; the loader counts those that did not.

        With `look` it tells also of damaged JPEGs.
        """
        bad: Bad = []
        damaged: list[str] | None = [] if look else None
        side = self.spec.shorter_side
        for used in replacements(index, len(self)):
            path = self.images.paths[used]
            found = self.cache[used] if self.cache else open_image(path, side, damaged)
            if not isinstance(found, str):
                return found, used, [*bad, *((one, DAMAGED) for one in damaged or ())]
            bad.append((path, found))
        return self.spec.blank(), NONE_OPENS, bad


def open_image(path: str, shorter_side: int, damaged: list[str] | None = None) -> Image | str:
    """The image, or why it does not open; `damaged` as in `read_image`."""
    try:
        return read_image(path, shorter_side=shorter_side, damaged=damaged)
    except CorruptImage as error:
        return str(error)


def replacements(index: int, images: int) -> Iterator[int]:
    """The image itself, then those that are tried in its place where it does not open."""
    for step in range(min(REPLACEMENTS, images)):
        # In a large set ever farther away: damaged files are often neighbours.
        ahead = step if images <= REPLACEMENTS else step * step
        yield (index + ahead) % images


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], *, what: str, ahead: int = 256
) -> Iterator[Result]:
    """What `function` makes of every image, in order and `ahead` of the reader, with progress."""
    waiting: deque[Future[Result]] = deque()
    with (
        ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool,
        tqdm(total=len(items), desc=what, unit="image", mininterval=1, leave=False) as bar,
    ):
        try:
            for number in range(len(items) + ahead):
                if number < len(items):
                    waiting.append(pool.submit(function, items[number]))
                if number >= ahead and waiting:
                    yield waiting.popleft().result()
                    bar.update()
        finally:
            pool.shutdown(cancel_futures=True)


def cache_images(
    images: ImageList, *, budget_mb: int, shorter_side: int, corrupt: CorruptCount
) -> list[Image | str] | None:
    """The whole set decoded; None where it exceeds `budget_mb`.

    A corrupt image is counted and leaves the reason in its place, so that the images keep their
    numbers and a run is the same with a cache and without.
    """
    if not budget_mb:
        return None
    read = partial(open_image, shorter_side=shorter_side)
    probes = [images.paths[i] for i in np.linspace(0, len(images) - 1, 16).astype(int)]
    sizes = [image.nbytes for image in map(read, probes) if not isinstance(image, str)]
    if not sizes or float(np.mean(sizes)) * len(images) > budget_mb * 2**20:
        return None
    cache: list[Image | str] = []
    damaged: list[str] = []
    look = partial(read, damaged=damaged)
    for image in in_threads(look, images.paths, what="reading images"):
        corrupt.saw(1)
        if isinstance(image, str):
            corrupt.add(images.paths[len(cache)], image)
        cache.append(image)
    for path in sorted(damaged):
        corrupt.add(path, DAMAGED)
    return cache
