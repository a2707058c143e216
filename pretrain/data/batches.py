"""Samples to batches, made ahead by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from moco_det.foundation.errors import InputError
from moco_det.foundation.stopping import ignore_in_worker
from pretrain.data.corrupt import CorruptCount
from pretrain.data.views import NONE_OPENS, Sample
from pretrain.jpeg import DAMAGED


class RawBatch(NamedTuple):
    """A batch on the host: pixels [N, V, S, S, 3] uint8, image numbers and labels [N].

    A label is -1 where there is none; `bad` names the images that did not open and why.
    With DATA.ON_DEVICE workers give what chance decided about each view in place of its pixels,
    and the batch that is given out lies on the device.
    """

    pixels: Tensor
    indices: Tensor
    labels: Tensor
    bad: list[tuple[str, str]]


def collate(samples: Sequence[Sample]) -> RawBatch:
    """Stack samples to one batch."""
    pixels, indices, labels, bad = zip(*samples, strict=True)
    stacked = torch.from_numpy(np.stack(pixels))
    return RawBatch(stacked, torch.tensor(indices), torch.tensor(labels), sum(bad, []))


class BatchLoader(DataLoader[Any]):
    """Batches in the given order, made by `workers` processes (0: in this one), each `ahead`.

    Raises InputError for what a user can fix. With `corrupt`, images that did not open are counted
    there before their batch is given out; `finish` is what this process does to each batch.
    """

    def __init__(
        self,
        dataset: Dataset[Sample],
        order: Sampler[Any] | Any,
        *,
        workers: int,
        pin: bool,
        corrupt: CorruptCount | None = None,
        finish: Callable[[RawBatch], RawBatch] | None = None,
        ahead: int = 4,
    ) -> None:
        super().__init__(
            dataset,
            batch_sampler=order,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin,
            prefetch_factor=ahead if workers else None,
            worker_init_fn=_begin_worker,
            # The loader draws a seed for its workers, which use none; drawn from torch's own
            # generator it would make a resumed run differ from one that was never stopped.
            generator=torch.Generator(),
        )
        self.corrupt = corrupt
        self.finish = finish

    def __iter__(self) -> Iterator[RawBatch]:  # type: ignore[override]
        with worker_errors():
            for raw in super().__iter__():
                if self.corrupt is not None:
                    self.corrupt.saw(len(raw.indices))
                    for name, reason in raw.bad:
                        self.corrupt.add(name, reason)
                if raw.bad and bool((raw.indices == NONE_OPENS).any()):
                    name, reason = [one for one in raw.bad if one[1] != DAMAGED][-1]
                    raise InputError(
                        "an image does not open, nor any of those tried in its place; the last is "
                        f"{name}: {reason}; is the disk still there?"
                    )
                yield raw if self.finish is None else self.finish(raw)


@contextmanager
def worker_errors() -> Iterator[None]:
    """Makes the death of a worker process an InputError of one line.

    torch raises it in the main thread at whatever line that has come to.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        if "Bus error" in str(error):
            why = "shared memory is full: enlarge /dev/shm (docker run --shm-size)"
        else:
            why = "most often memory has run out"
        first = str(error).partition("\n")[0].strip().rstrip(".")
        raise InputError(
            f"a process that reads images has died ({first}): {why}, or lower DATA.WORKERS; "
            "the run can be resumed"
        ) from error


def _begin_worker(worker: int) -> None:
    ignore_in_worker()
    # The workers are the parallelism; OpenCV's own threads would fight over the same cores.
    cv2.setNumThreads(0)
