"""`open_data`: from a DATA.PATH to a `Source` of batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.data import Dataset

from moco_det.foundation.errors import InputError
from pretrain.augment import Recipe
from pretrain.data.batches import BatchLoader, RawBatch, make_loader
from pretrain.data.corrupt import CorruptCount
from pretrain.data.listing import list_images
from pretrain.data.order import Order, Steps
from pretrain.data.resident import RowSet, ViewsOnDevice, decode_squares, square_side
from pretrain.data.shard_list import is_shards, list_shards
from pretrain.data.shards import EncodedViews, StreamOrder
from pretrain.data.views import Sample, ViewSet, ViewSpec, cache_images


@dataclass(frozen=True)
class Source:
    """Images to train on, listed or in a stream of shards.

    `images` are those of an epoch, `classes` how many the labels have, `order` the order of a run
    by its steps, `finish` as in `make_loader`, `shards` how many there are, 0 for listed images.
    """

    images: int
    classes: int | None
    corrupt: CorruptCount
    dataset: Dataset[Sample]
    order: Callable[..., Steps]
    finish: Callable[[RawBatch], RawBatch] | None = None
    shards: int = 0

    @property
    def numbered(self) -> bool:
        """Whether an image has the same number, below `images`, in every epoch."""
        return not self.shards

    def identity(self, world: int) -> dict[str, int]:
        """What must be equal for a run to be continued with this source.

        The order of listed images is the same for any number of processes.
        """
        shards = {"shards": self.shards, "processes": world} if self.shards else {}
        return {"images": self.images, **shards}

    def make_loader(
        self,
        *,
        batch: int,
        start: int,
        stop: int,
        rank: int = 0,
        world: int = 1,
        workers: int,
        pin: bool,
    ) -> BatchLoader:
        """Batches of iterations start..stop-1, of a global batch of `batch` this process's rows.

        Raises InputError where `batch` is not a multiple of `world`.
        """
        return make_loader(
            self.dataset,
            self.order(batch=batch, start=start, stop=stop, rank=rank, world=world),
            workers=workers,
            pin=pin,
            corrupt=self.corrupt,
            finish=self.finish,
            ahead=2 if self.shards else 4,
        )


def open_data(
    path: str,
    *,
    recipe: Recipe,
    size: int,
    views: int,
    seed: int,
    batch: int = 1,
    shorter_side: int = 0,
    cache_mb: int = 0,
    images: int = 0,
    shuffle_buffer: int = 4096,
    max_corrupt: float = 0.01,
    strict: bool = False,
    on_device: torch.device | None = None,
) -> Source:
    """The source that a DATA.PATH names, without reading its images but for a cache.

    With `on_device` all images are decoded now to lie on that device, where their views are made.
    `images` (DATA.IMAGES) is the length of an epoch over shards, by default what their index says;
    for listed images it is 0 or must be their number. Raises InputError, also where an epoch has
    fewer images than the global `batch`: an image twice in a batch is its own negative.
    """
    spec = ViewSpec(recipe, size=size, views=views, seed=seed, shorter_side=shorter_side)
    if is_shards(path):
        if on_device is not None:
            raise InputError(
                f"DATA.ON_DEVICE is True and DATA.PATH {path} names shards, a stream of which no "
                "whole lies anywhere: set DATA.ON_DEVICE False, or give a folder or a list of "
                "images"
            )
        shards = list_shards(path)
        epoch = images or shards.images
        if not epoch:
            raise InputError(
                f"DATA.PATH {path}: say how many images an epoch over these shards has by "
                "DATA.IMAGES, or count them once by moco-det make-shards --index"
            )
        check_enough(epoch, batch, f"an epoch over DATA.PATH {path}")
        classes = None if shards.classes is None else len(shards.classes)
        return Source(
            epoch,
            classes,
            CorruptCount(epoch, max_share=max_corrupt, strict=strict),
            EncodedViews(spec, classes),
            partial(StreamOrder, epoch, seed=seed, shards=shards, buffer=shuffle_buffer),
            shards=len(shards.urls),
        )
    listed = list_images(path)
    if images not in (0, len(listed)):
        raise InputError(
            f"DATA.IMAGES is {images} and DATA.PATH {path} has {len(listed)}: leave it 0, it "
            "gives the length of an epoch over shards"
        )
    check_enough(len(listed), batch, f"DATA.PATH {path}")
    corrupt = CorruptCount(len(listed), max_share=max_corrupt, strict=strict)
    dataset, finish = ViewSet(listed, spec), None
    if on_device is not None:
        side = square_side(shorter_side, size=size, min_scale=recipe.min_scale)
        squares = decode_squares(listed, side=side, device=on_device, corrupt=corrupt)
        dataset, finish = RowSet(listed, spec, squares), ViewsOnDevice(squares, spec)
    elif cache_mb:
        dataset.cache = cache_images(
            listed, budget_mb=cache_mb, shorter_side=shorter_side, corrupt=corrupt
        )
    classes = None if listed.labels is None else len(listed.classes)
    order = partial(Order, len(listed), seed=seed)
    return Source(len(listed), classes, corrupt, dataset, order, finish)


def check_enough(images: int, batch: int, what: str) -> None:
    """Raise InputError where `what` has fewer images than the global batch."""
    if images < batch:
        raise InputError(
            f"{what} has {images} image{'s' if images != 1 else ''}, fewer than the {batch} of "
            "SOLVER.BATCH: give more images, or lower SOLVER.BATCH to their number"
        )
