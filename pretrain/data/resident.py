"""A whole set of images as uint8 on the device, and their views made there.

Each image is decoded once and stored as a square of side D: the whole picture, its longer side
squeezed to D. Crops are drawn in the shape it had when its shorter side was D, and are taken from
where they lie in the square: a run has the views that it has without DATA.ON_DEVICE at
DATA.SHORTER_SIDE D, but for rounding and for what the longer side has lost. Workers draw; this
process makes the views.
"""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moco_det.foundation.errors import InputError
from pretrain import augment, device_views
from pretrain.data.batches import RawBatch
from pretrain.data.corrupt import CorruptCount
from pretrain.data.listing import ImageList
from pretrain.data.order import Key
from pretrain.data.views import Sample, ViewSet, ViewSpec, in_threads, open_image, replacements
from pretrain.images import Image
from pretrain.jpeg import DAMAGED

# The set may take this share of a GPU's free memory or of the host's; training needs the rest.
SHARE = 0.75
CHUNK = 512  # images that are sent at once


@dataclass(frozen=True)
class Squares:
    """A set on the device: pixels [N, D, 3, D] uint8; on the host the shapes [N, 2] it came in.

    `used` [N] are the images themselves, or what replaces one that does not open.
    """

    pixels: Tensor
    shapes: NDArray[np.int64]
    used: NDArray[np.int64]


class RowSet(ViewSet):
    """What chance decides about the views of an image, as rows of numbers in place of pixels."""

    def __init__(self, images: ImageList, spec: ViewSpec, squares: Squares) -> None:
        super().__init__(images, spec)
        self.side = squares.pixels.shape[1]
        self.shapes, self.used = squares.shapes, squares.used  # no worker needs the pixels

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        used = int(self.used[index])
        height, width = self.shapes[used].tolist()
        rng = augment.generator(self.spec.seed, epoch, index)
        views = augment.draw_views(height, width, self.spec.recipe, count=self.spec.views, rng=rng)
        rows = [device_views.row(one, height=height, width=width, side=self.side) for one in views]
        label = -1 if self.images.labels is None else int(self.images.labels[used])
        return np.array(rows, dtype=np.float32), used, label, []


class ViewsOnDevice:
    """Turns a batch of a `RowSet` into one of views on the device.

    On a GPU they are made in a stream of their own, beside the step before.
    """

    def __init__(self, squares: Squares, spec: ViewSpec) -> None:
        self.pixels = squares.pixels
        side, device = self.pixels.shape[1], self.pixels.device
        self.make = device_views.ViewMaker(spec.recipe, size=spec.size, side=side, device=device)
        self.stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)
            self.stream.wait_stream(torch.cuda.current_stream(device))  # for the set itself

    def __call__(self, raw: RawBatch) -> RawBatch:
        with torch.cuda.stream(self.stream):  # None, on a CPU, changes nothing
            rows, indices, labels = (
                tensor.to(self.pixels.device, non_blocking=True)
                for tensor in (raw.pixels, raw.indices, raw.labels)
            )
            views = self.make(self.pixels.index_select(0, indices), rows)
        if self.stream is not None:
            step = torch.cuda.current_stream(self.pixels.device)
            step.wait_stream(self.stream)
            for tensor in (views, indices, labels):
                tensor.record_stream(step)  # not to be overwritten before the step has read it
        return RawBatch(views, indices, labels, raw.bad)


def square_side(shorter_side: int, *, size: int, min_scale: float) -> int:
    """DATA.SHORTER_SIDE, or where that is 0 the side at which the smallest crop is a view's."""
    return shorter_side or math.ceil(size / math.sqrt(min_scale))


def check_room(images: int, side: int, device: torch.device) -> None:
    """Raise InputError where the squares take more than their share of the device's memory."""
    needed = images * side**2 * 3
    if device.type == "cuda":
        memory = torch.cuda.mem_get_info(device)[0]
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > SHARE * memory:
        raise InputError(
            f"DATA.ON_DEVICE: {images:,} images as squares of {side} px need "
            f"{needed / 2**30:.2f} GiB and may take {SHARE * memory / 2**30:.2f} of the "
            f"{memory / 2**30:.2f} GiB of {device.type} memory: set DATA.ON_DEVICE False, or "
            "DATA.SHORTER_SIDE to a smaller square"
        )


def decode_squares(
    images: ImageList, *, side: int, device: torch.device, corrupt: CorruptCount
) -> Squares:
    """All images as squares on the device; corrupt ones are counted and named.

    Raises InputError, before the first is read, where they do not fit.
    """
    check_room(len(images), side, device)
    pixels = torch.empty(len(images), side, 3, side, dtype=torch.uint8, device=device)
    shapes = np.zeros((len(images), 2), dtype=np.int64)
    blank = np.zeros((side, 3, side), dtype=np.uint8)
    damaged: list[str] = []

    def square(number: int) -> Image | str:
        image = open_image(images.paths[number], side, damaged)
        if isinstance(image, str):
            return image
        shapes[number] = image.shape[:2]
        return augment.resize(image, side, side).transpose(0, 2, 1)

    squares = in_threads(square, range(len(images)), what="images to the device", ahead=CHUNK)
    for start in range(0, len(images), CHUNK):
        chunk = list(itertools.islice(squares, CHUNK))
        corrupt.saw(len(chunk))
        for number, found in enumerate(chunk, start):
            if isinstance(found, str):
                corrupt.add(images.paths[number], found)
        stacked = np.stack([blank if isinstance(found, str) else found for found in chunk])
        pixels[start : start + len(chunk)] = torch.from_numpy(stacked)
    for path in sorted(damaged):
        corrupt.add(path, DAMAGED)
    opens = shapes[:, 0] > 0
    used = np.arange(len(images))
    for number in np.flatnonzero(~opens).tolist():
        instead = [other for other in replacements(number, len(images)) if opens[other]]
        if not instead:
            raise InputError(
                f"image {images.paths[number]} does not open, nor any of those tried in its place"
            )
        used[number] = instead[0]
    return Squares(pixels, shapes, used)
