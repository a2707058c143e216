"""`open_data`: from a DATA.PATH to a `Source` of batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.utils.data import Dataset

from moco_det.foundation.declared import at_least, within
from moco_det.foundation.errors import InputError
from pretrain.data.batches import BatchLoader, RawBatch
from pretrain.data.corrupt import CorruptCount
from pretrain.data.listing import ImageList, is_shards, list_images
from pretrain.data.order import Order, Steps
from pretrain.data.resident import RowSet, ViewsOnDevice, decode_squares, square_side
from pretrain.data.shard_files import list_shards
from pretrain.data.shards import EncodedViews, StreamOrder
from pretrain.data.views import Sample, ViewSet, ViewSpec, cache_images


@dataclass(frozen=True)
class DataArgs:
    """DATA.*: the images, and how they are read."""

    # A folder of images, with or without one sub-folder per class; a text file with one image path
    # per line (relative to the file), path<TAB>class where there are labels;
    # voc://DIR?split=train; coco://instances.json?images=DIR; or WebDataset shards,
    # DIR/name-{000000..000099}.tar.
    PATH: str = ""
    # Images are shrunk to this shorter side right after decoding; 0 keeps them as they are.
    SHORTER_SIDE: int = at_least(0, 0)
    # Decoded images are kept in memory where the whole set fits in this; 0 never.
    CACHE_MB: int = at_least(0, 512)
    # Every image is decoded once to uint8 on the device, each process's own, and the views are
    # made there in batches. They are stored as squares of side SHORTER_SIDE, the longer side
    # squeezed; 0 takes AUGMENT.SIZE / sqrt(AUGMENT.MIN_SCALE), the side at which no crop is
    # smaller than its view. The crops are those without this key; not for shards.
    ON_DEVICE: bool = False
    WORKERS: int = at_least(0, 2)
    # Share of images that may fail to open before the run stops; STRICT stops at the first one.
    MAX_CORRUPT: float = within(0, 1, 0.01)
    STRICT: bool = False
    # For WebDataset shards: how many images they hold (an epoch is that many), and how many wait
    # in memory, encoded, to be drawn in random order, for each process that the run began with.
    IMAGES: int = at_least(0, 0)
    SHUFFLE_BUFFER: int = at_least(1, 4096)


@dataclass(frozen=True)
class Source:
    """Images to train on, listed or in a stream of shards.

    `images` are those of an epoch, `classes` how many the labels have, `order` the order of a run
    by its steps, `finish` as in `BatchLoader`, `shards` how many there are, 0 for listed images.
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

    @property
    def identity(self) -> dict[str, int]:
        """What must be equal for a run to be continued with this source."""
        return {"images": self.images, **({"shards": self.shards} if self.shards else {})}

    def make_loader(self, *, workers: int, pin: bool, **steps: int) -> BatchLoader:
        """The batches of some `steps`, which are batch, start, stop and more as in `Steps`."""
        return BatchLoader(
            self.dataset,
            self.order(**steps),
            workers=workers,
            pin=pin,
            corrupt=self.corrupt,
            finish=self.finish,
            ahead=2 if self.shards else 4,
        )


def open_data(args: DataArgs, spec: ViewSpec, *, batch: int, device: torch.device) -> Source:
    """The source that DATA.PATH names, without reading its images but for a cache.

    With DATA.ON_DEVICE all images are decoded now to lie on `device`, where their views are made.
    DATA.IMAGES is the length of an epoch over shards, by default what their index says; for listed
    images it is 0 or must be their number. Raises InputError, also where an epoch has fewer images
    than the global `batch`: an image twice in a batch is its own negative.
    """
    if is_shards(args.PATH):
        return _open_shards(args, spec, batch)
    listed = list_images(args.PATH)
    if args.IMAGES not in (0, len(listed)):
        raise InputError(
            f"DATA.IMAGES is {args.IMAGES} and DATA.PATH {args.PATH} has {len(listed)}: leave it "
            "0, it gives the length of an epoch over shards"
        )
    check_enough(len(listed), batch, f"DATA.PATH {args.PATH}")
    corrupt = CorruptCount(len(listed), args.MAX_CORRUPT, strict=args.STRICT)
    if not args.ON_DEVICE:
        return listed_source(listed, spec, corrupt, cache_mb=args.CACHE_MB)
    side = square_side(spec.shorter_side, size=spec.size, min_scale=spec.recipe.min_scale)
    squares = decode_squares(listed, side=side, device=device, corrupt=corrupt)
    source = listed_source(listed, spec, corrupt)
    views = ViewsOnDevice(squares, spec)
    return replace(source, dataset=RowSet(listed, spec, squares), finish=views)


def _open_shards(args: DataArgs, spec: ViewSpec, batch: int) -> Source:
    path = args.PATH
    if args.ON_DEVICE:
        raise InputError(
            f"DATA.ON_DEVICE is True and DATA.PATH {path} names shards, a stream of which no whole "
            "lies anywhere: set DATA.ON_DEVICE False, or give a folder or a list of images"
        )
    shards = list_shards(path)
    images = args.IMAGES or shards.images
    if not images:
        raise InputError(
            f"DATA.PATH {path}: say how many images an epoch over these shards has by DATA.IMAGES, "
            "or count them once by moco-det make-shards --index"
        )
    check_enough(images, batch, f"an epoch over DATA.PATH {path}")
    classes = None if shards.classes is None else len(shards.classes)
    corrupt = CorruptCount(images, args.MAX_CORRUPT, strict=args.STRICT)
    buffer = args.SHUFFLE_BUFFER
    order = partial(StreamOrder, images, seed=spec.seed, shards=shards, buffer=buffer)
    dataset = EncodedViews(spec, classes)
    return Source(images, classes, corrupt, dataset, order, shards=len(shards.urls))


def listed_source(
    images: ImageList, spec: ViewSpec, corrupt: CorruptCount, *, cache_mb: int = 0
) -> Source:
    """The source of a list, decoded once where it fits in `cache_mb`."""
    classes = None if images.labels is None else len(images.classes)
    side = spec.shorter_side
    cache = cache_images(images, budget_mb=cache_mb, shorter_side=side, corrupt=corrupt)
    order = partial(Order, len(images), seed=spec.seed)
    return Source(len(images), classes, corrupt, ViewSet(images, spec, cache), order)


def check_enough(images: int, batch: int, what: str) -> None:
    """Raise InputError where `what` has fewer images than the global batch."""
    if images < batch:
        # each of these keys alone would be refused for the next
        fits = f"SOLVER.BATCH {images} ENCODER.BN_SPLITS 0 MOCO.K {images}"
        raise InputError(
            f"{what} has {images} image{'s' if images != 1 else ''}, fewer than the {batch} of "
            f"SOLVER.BATCH: give more images{f', or add {fits}' if images > 1 else ''}"
        )
