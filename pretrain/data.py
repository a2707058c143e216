"""Images on disk to uint8 views in batches: listing, decoding, cache, order, loader.

Images are RGB, uint8, [H, W, 3]. The order of images and their views depend on the seed and the
position in training alone, never on the number of workers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pretrain import augment
from pretrain.augment import Image, Recipe
from pretrain.errors import InputError

logger = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")

# How many neighbours are tried in place of an image that does not open.
REPLACEMENTS = 100


class CorruptImage(Exception):
    """A file that does not open as an image; the message says why."""


@dataclass(frozen=True)
class ImageList:
    """Paths, and for each the number of its class where the source has classes."""

    root: str
    paths: list[str]
    labels: NDArray[np.int64] | None
    classes: list[str]

    def __len__(self) -> int:
        return len(self.paths)


def list_images(path: str) -> ImageList:
    """The images of a folder (one sub-folder a class, or none) or of a text list, sorted.

    Raises InputError where there is nothing to read.
    """
    if not path:
        raise InputError("DATA.PATH is empty: give a folder of images or a text file of paths")
    if os.path.isdir(path):
        found = _list_folder(path)
    elif os.path.isfile(path):
        found = _list_text(path)
    else:
        raise InputError(f"DATA.PATH {path} does not exist: give a folder of images or a list")
    if not found:
        raise InputError(f"DATA.PATH {path} has no images ({', '.join(EXTENSIONS)})")
    return found


def _list_folder(root: str) -> ImageList:
    relative: list[str] = []
    seen: set[str] = set()  # a link that leads back up must not be followed for ever
    for folder, below, names in tqdm(
        os.walk(root, followlinks=True), desc="listing folders", mininterval=1, delay=2
    ):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = [name for name in below if not name.startswith(".")]
        inside = os.path.relpath(folder, root)
        relative += [
            os.path.normpath(os.path.join(inside, name))
            for name in names
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    relative.sort()
    paths = [os.path.join(root, name) for name in relative]
    tops = [name.split(os.sep, 1) for name in relative]
    if not relative or any(len(parts) == 1 for parts in tops):
        return ImageList(root, paths, None, [])
    return _labelled(root, paths, [parts[0] for parts in tops])


def _list_text(path: str) -> ImageList:
    here = Path(path).parent
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"DATA.PATH {path} is not a readable text list: {error}") from error
    rows = [line.rstrip().split("\t") for line in lines if line.strip()]
    widths = {len(row) for row in rows}
    if rows and widths not in ({1}, {2}):
        raise InputError(
            f"DATA.PATH {path}: every line must be a path, or every line path<TAB>class"
        )
    paths = [str(here / row[0]) for row in rows]
    if widths != {2}:
        return ImageList(path, paths, None, [])
    return _labelled(path, paths, [row[1] for row in rows])


def _labelled(root: str, paths: list[str], names: list[str]) -> ImageList:
    classes = sorted(set(names))
    number = {name: i for i, name in enumerate(classes)}
    return ImageList(root, paths, np.array([number[n] for n in names], dtype=np.int64), classes)


def read_image(path: str, *, shorter_side: int = 0) -> Image:
    """Decode to RGB uint8 [H, W, 3], upright by EXIF; raises CorruptImage.

    With `shorter_side` above 0 a larger image is shrunk to it.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise CorruptImage(error.strerror or str(error)) from error
    if data.size == 0:
        raise CorruptImage("empty file")
    if _is_cut_jpeg(data.tobytes()):
        raise CorruptImage("the JPEG is cut short")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise CorruptImage("not an image that OpenCV can decode") from error
    if image is None:
        raise CorruptImage("not an image that OpenCV can decode")
    height, width = image.shape[:2]
    if 0 < shorter_side < min(height, width):
        scale = shorter_side / min(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _is_cut_jpeg(data: bytes) -> bool:
    """True for a JPEG without an end marker after its first scan; OpenCV fills those with gray."""
    if data[:2] != b"\xff\xd8":
        return False
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xDA:
            return data.rfind(b"\xff\xd9", at) < 0
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    # No scan where one must be: cut inside the headers, or too odd for us to judge.
    return at + 4 > len(data)


class CorruptCount:
    """The images that did not open: named once each, and an error when they are too many."""

    def __init__(self, total: int, *, max_share: float, strict: bool) -> None:
        self.names: set[str] = set()
        self.strict = strict
        self.max_share = max_share
        allowed = max(1, int(max_share * total)) if max_share > 0 else 0
        self.limit = min(allowed, total - 1)  # one must remain
        self.total = total

    def add(self, path: str, reason: str) -> None:
        """Count and name one image; raises InputError where it is one too many."""
        if path in self.names:
            return
        self.names.add(path)
        if self.strict:
            raise InputError(
                f"image {path}: {reason}; mend or remove it, or set DATA.STRICT False to skip it"
            )
        if len(self.names) > self.limit:
            raise InputError(
                f"{len(self.names)} of {self.total} images do not open, more than DATA.MAX_CORRUPT "
                f"{self.max_share:g} allows; the last is {path}: {reason}"
            )
        logger.warning(
            "skipped image %s: %s (%d of %d so far)", path, reason, len(self.names), self.total
        )


Key = tuple[int, int]  # pass over the data, image
Sample = tuple[Image, int, int, list[tuple[str, str]]]  # views, image, label, what did not open


class ViewSet(Dataset[Sample]):
    """Views of images by (pass over the data, image index); cached images are decoded once."""

    def __init__(
        self,
        images: ImageList,
        *,
        recipe: Recipe,
        size: int,
        views: int,
        seed: int,
        shorter_side: int = 0,
        cache: list[Image] | None = None,
    ) -> None:
        self.images = images
        self.recipe = recipe
        self.size = size
        self.views = views
        self.seed = seed
        self.shorter_side = shorter_side
        self.cache = cache

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        image, used, bad = self._read(index)
        rng = augment.sample_rng(self.seed, epoch, index)
        views = augment.views(image, self.recipe, size=self.size, count=self.views, rng=rng)
        label = -1 if self.images.labels is None else int(self.images.labels[used])
        return views, used, label, bad

    def _read(self, index: int) -> tuple[Image, int, list[tuple[str, str]]]:
        """The image, or the next one that opens; the loop counts those that did not."""
        if self.cache is not None:
            return self.cache[index], index, []
        bad: list[tuple[str, str]] = []
        for step in range(min(REPLACEMENTS, len(self))):
            used = (index + step) % len(self)
            path = self.images.paths[used]
            try:
                return read_image(path, shorter_side=self.shorter_side), used, bad
            except CorruptImage as error:
                bad.append((path, str(error)))
        return np.zeros((self.size, self.size, 3), np.uint8), index, bad


def cache_images(
    images: ImageList, *, budget_mb: int, shorter_side: int, corrupt: CorruptCount
) -> tuple[ImageList, list[Image] | None]:
    """Decode the whole set into memory where it fits in `budget_mb`, and drop what is corrupt.

    Returns the list and its images, or the list as it was and None.
    """
    probes = [images.paths[i] for i in np.linspace(0, len(images) - 1, 16).astype(int)]
    sizes = [
        image.nbytes for image in map(_reader(shorter_side), probes) if not isinstance(image, str)
    ]
    if not sizes or float(np.mean(sizes)) * len(images) > budget_mb * 2**20:
        return images, None
    kept: list[int] = []
    cache: list[Image] = []
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        decoded = pool.map(_reader(shorter_side), images.paths)
        for i, image in enumerate(
            tqdm(decoded, total=len(images), desc="reading images", mininterval=1)
        ):
            if isinstance(image, str):
                corrupt.add(images.paths[i], image)
            else:
                kept.append(i)
                cache.append(image)
    if not cache:
        raise InputError(f"no image of {images.root} opens")
    labels = None if images.labels is None else images.labels[kept]
    return ImageList(images.root, [images.paths[i] for i in kept], labels, images.classes), cache


class _reader:
    """`read_image` that gives the reason as text instead of raising."""

    def __init__(self, shorter_side: int) -> None:
        self.shorter_side = shorter_side

    def __call__(self, path: str) -> Image | str:
        try:
            return read_image(path, shorter_side=self.shorter_side)
        except CorruptImage as error:
            return str(error)


def steps_per_epoch(images: int, batch: int) -> int:
    """Whole batches in one epoch; a set smaller than a batch makes one batch of several passes."""
    return max(1, images // batch)


class Order:
    """The batches of iterations start..stop-1, as lists of (pass over the data, image).

    Every epoch is a new permutation and drops its last partial batch.
    """

    def __init__(self, images: int, batch: int, *, seed: int, start: int, stop: int) -> None:
        self.images = images
        self.batch = batch
        self.seed = seed
        self.start = start
        self.stop = stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        steps = steps_per_epoch(self.images, self.batch)
        current, keys = -1, np.empty((0, 2), dtype=np.int64)
        for iteration in range(self.start, self.stop):
            epoch, step = divmod(iteration, steps)
            if epoch != current:
                current, keys = epoch, self._epoch(epoch)
            rows = keys[step * self.batch : (step + 1) * self.batch]
            yield [(int(a), int(b)) for a, b in rows]

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        passes = max(1, -(-self.batch // self.images))
        parts = []
        for number in range(epoch * passes, (epoch + 1) * passes):
            seed = np.random.SeedSequence((self.seed, number), spawn_key=(1,))
            order = np.random.Generator(np.random.PCG64(seed)).permutation(self.images)
            parts.append(np.stack([np.full_like(order, number), order], axis=1))
        return np.concatenate(parts)


@dataclass
class RawBatch:
    """A batch on the host: pixels [N, V, S, S, 3] uint8, image numbers and labels [N]."""

    pixels: Tensor
    indices: Tensor
    labels: Tensor
    bad: list[tuple[str, str]]

    def pin_memory(self) -> RawBatch:
        """Called by the loader where the batch goes to a GPU."""
        pinned = self.pixels.pin_memory()
        return RawBatch(pinned, self.indices.pin_memory(), self.labels.pin_memory(), self.bad)


def collate(samples: list[Sample]) -> RawBatch:
    """Stack samples to one batch."""
    pixels = torch.from_numpy(np.stack([sample[0] for sample in samples]))
    indices = torch.tensor([sample[1] for sample in samples])
    labels = torch.tensor([sample[2] for sample in samples])
    return RawBatch(pixels, indices, labels, [bad for sample in samples for bad in sample[3]])


def make_loader(dataset: ViewSet, order: Order, *, workers: int, pin: bool) -> DataLoader[RawBatch]:
    """Batches in the given order, made ahead by `workers` processes (0: in this one)."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=order,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
        # The loader draws a seed for its workers, which use none; drawn from torch's own generator
        # it would make a resumed run differ from one that was never stopped.
        generator=torch.Generator(),
    )


def _one_thread(worker: int) -> None:
    # The workers are the parallelism; OpenCV's own threads would fight over the same cores.
    cv2.setNumThreads(0)
