"""One door to all data: `open_data` and the face that every source has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from moco_det.foundation.errors import InputError
from pretrain.augment import Recipe
from pretrain.data.batches import BatchLoader, RawBatch, make_loader
from pretrain.data.corrupt import CorruptCount
from pretrain.data.listing import ImageList, list_images
from pretrain.data.order import Order
from pretrain.data.resident import RowSet, ViewsOnDevice, decode_squares, square_side
from pretrain.data.shard_list import is_shards, list_shards
from pretrain.data.shards import ShardStream
from pretrain.data.views import ViewSet, cache_images


class Source(Protocol):
    """Images to train on."""

    images: int  # in an epoch
    numbered: bool  # whether an image has the same number, below `images`, in every epoch
    classes: int | None  # how many, where there are labels
    corrupt: CorruptCount

    def identity(self, world: int) -> dict[str, int]:
        """What must be equal for a run to be continued with this source."""

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


class ImageSource:
    """The `Source` of listed images; `finish` as in `make_loader`."""

    numbered = True

    def __init__(
        self,
        views: ViewSet,
        corrupt: CorruptCount,
        finish: Callable[[RawBatch], RawBatch] | None = None,
    ) -> None:
        self.views = views
        self.corrupt = corrupt
        self.finish = finish
        self.images = len(views)
        self.classes = None if views.images.labels is None else len(views.images.classes)

    def identity(self, world: int) -> dict[str, int]:
        """The number of images: their order is the same for any number of processes."""
        return {"images": self.images}

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
        """Batches of iterations start..stop-1: this process's rows of each."""
        order = Order(
            self.images,
            batch,
            seed=self.views.seed,
            start=start,
            stop=stop,
            rank=rank,
            world=world,
        )
        return make_loader(
            self.views,
            order,
            workers=workers,
            pin=pin,
            corrupt=self.corrupt,
            finish=self.finish,
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
    if not is_shards(path):
        listed = list_images(path)
        if images not in (0, len(listed)):
            raise InputError(
                f"DATA.IMAGES is {images} and DATA.PATH {path} has {len(listed)}: leave it 0, it "
                "gives the length of an epoch over shards"
            )
        check_enough(len(listed), batch, f"DATA.PATH {path}")
        return _open_listed(
            listed,
            cache_mb=cache_mb,
            corrupt=CorruptCount(len(listed), max_share=max_corrupt, strict=strict),
            recipe=recipe,
            size=size,
            views=views,
            seed=seed,
            shorter_side=shorter_side,
            on_device=on_device,
        )
    if on_device is not None:
        raise InputError(
            f"DATA.ON_DEVICE is True and DATA.PATH {path} names shards, a stream of which no whole "
            "lies anywhere: set DATA.ON_DEVICE False, or give a folder or a list of images"
        )
    shards = list_shards(path)
    epoch = images or shards.images
    if not epoch:
        raise InputError(
            f"DATA.PATH {path}: say how many images an epoch over these shards has by DATA.IMAGES, "
            "or count them once by moco-det make-shards --index"
        )
    check_enough(epoch, batch, f"an epoch over DATA.PATH {path}")
    return ShardStream(
        shards,
        images=epoch,
        buffer=shuffle_buffer,
        recipe=recipe,
        size=size,
        views=views,
        seed=seed,
        shorter_side=shorter_side,
        corrupt=CorruptCount(epoch, max_share=max_corrupt, strict=strict),
    )


def check_enough(images: int, batch: int, what: str) -> None:
    """Raise InputError where `what` has fewer images than the global batch."""
    if images < batch:
        raise InputError(
            f"{what} has {images} image{'s' if images != 1 else ''}, fewer than the {batch} of "
            "SOLVER.BATCH: give more images, or lower SOLVER.BATCH to their number"
        )


def _open_listed(
    listed: ImageList,
    *,
    cache_mb: int,
    corrupt: CorruptCount,
    recipe: Recipe,
    size: int,
    views: int,
    seed: int,
    shorter_side: int,
    on_device: torch.device | None,
) -> ImageSource:
    if on_device is not None:
        side = square_side(shorter_side, size=size, min_scale=recipe.min_scale)
        squares = decode_squares(listed, side=side, device=on_device, corrupt=corrupt)
        rows = RowSet(listed, squares, recipe=recipe, size=size, views=views, seed=seed)
        return ImageSource(rows, corrupt, ViewsOnDevice(squares, recipe=recipe, size=size))
    cache = None
    if cache_mb:
        listed, cache = cache_images(
            listed, budget_mb=cache_mb, shorter_side=shorter_side, corrupt=corrupt
        )
    dataset = ViewSet(
        listed,
        recipe=recipe,
        size=size,
        views=views,
        seed=seed,
        shorter_side=shorter_side,
        cache=cache,
    )
    return ImageSource(dataset, corrupt)
