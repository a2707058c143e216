"""Images on disk, or in a stream of shards, to uint8 views in batches.

`open_data` opens what DATA.PATH names and gives a `Source`, of listed images or of shards:

    source = open_data(DataArgs(PATH=...), ViewSpec(...), batch=256, device=device)
    source.images      # how many an epoch has
    source.numbered    # False for a stream: its images have no numbers that last, so no bank
    source.classes     # how many classes the labels have, None without labels
    source.identity    # what must be equal for a run to be continued on this source
    for batch in source.make_loader(batch=256, start=0, stop=total, workers=2, pin=False):
        ...            # RawBatch: pixels [N, V, S, S, 3] uint8, indices, labels, bad

`make_loader(start=k)` continues at iteration k exactly as a run that was never stopped: nothing
about the position has to be stored beside k. With `rank` and `world` it gives one process's rows
[r * batch / W, (r + 1) * batch / W) of each global batch. The order of images and their views
depend on the seed and the position in training alone, never on the number of workers; over shards
also on `streams`, how many processes the run began with. Images
that do not open are replaced, counted and named by the loader (`source.corrupt`), and so many
that DATA.MAX_CORRUPT is passed raise InputError from its iteration.

With DATA.ON_DEVICE all images are decoded at once to lie on that device, and the
batches that `make_loader` gives, of the same images in the same order, lie there too.

A worker that is killed is reported by torch to the main thread wherever that is: a training loop
runs inside `with worker_errors():`, which turns it into an InputError of one line.

Images are RGB, uint8, [H, W, 3], upright: the orientation in a photo's EXIF data is applied, as
in photo viewers; torchvision's ImageFolder leaves it out.
"""

from pretrain.data.batches import BatchLoader, RawBatch, worker_errors
from pretrain.data.corrupt import CorruptCount
from pretrain.data.listing import ImageList, is_shards, list_images
from pretrain.data.order import Order, share_of, steps_per_epoch
from pretrain.data.resident import square_side
from pretrain.data.sources import DataArgs, Source, check_enough, listed_source, open_data
from pretrain.data.views import ViewSet, ViewSpec, in_threads

__all__ = [
    "BatchLoader",
    "CorruptCount",
    "DataArgs",
    "ImageList",
    "Order",
    "RawBatch",
    "Source",
    "ViewSet",
    "ViewSpec",
    "check_enough",
    "in_threads",
    "is_shards",
    "list_images",
    "listed_source",
    "open_data",
    "share_of",
    "square_side",
    "steps_per_epoch",
    "worker_errors",
]
