"""The training batches of a detectron2 run, which a resumed run goes on with.

The images come in the order of detectron2's own samplers, which SEED decides. A batch of all
processes is filled from that one stream and then shared, and the randomness of an image's
augmentation is seeded by its place in the stream: neither depends on the number of processes, on
that of workers, or on whether the run was stopped before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, DatasetMapper, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from torch import Generator
from torch.utils.data import DataLoader, Dataset, Sampler

from moco_det.foundation.stopping import ignore_in_worker
from moco_det.plugin.random_state import seeded

Place = tuple[int, int]  # position in the stream, index of the image


@dataclass(eq=False)
class SharedBatches(Sampler[list[Place]]):
    """This process's part of endless batches, the first ``done`` of which are left out.

    A batch holds images that are all ``wide``, or none; ``batch_size`` is that of all processes.
    """

    sampler: Callable[..., Any]
    seed: int
    batch_size: int
    wide: Sequence[bool]
    done: int = 0

    def __iter__(self) -> Iterator[list[Place]]:
        return itertools.islice(self.batches(), self.done, None)

    def batches(self) -> Iterator[list[Place]]:
        share = self.batch_size // comm.get_world_size()
        first = comm.get_rank() * share
        waiting: dict[bool, list[Place]] = {False: [], True: []}
        for position, index in enumerate(self.sampler(seed=self.seed)._infinite_indices()):
            bucket = waiting[self.wide[index]]
            bucket.append((position, index))
            if len(bucket) == self.batch_size:
                yield bucket[first : first + share]
                bucket.clear()


@dataclass(eq=False)
class SeededImages(Dataset[dict[str, Any]]):
    """Images by their place in the stream, each augmented with the randomness of its place."""

    images: Dataset[dict[str, Any]]
    mapper: DatasetMapper
    batches: SharedBatches

    def __getitem__(self, place: Place) -> dict[str, Any]:
        position, index = place
        with seeded(
            int(np.random.SeedSequence([self.batches.seed, position]).generate_state(1)[0])
        ):
            found: dict[str, Any] = self.mapper(self.images[index])
        return found


def training_loader(cfg: CfgNode) -> DataLoader[dict[str, Any]]:
    """What `detectron2.data.build_detection_train_loader` makes of a config, in an order of ours.

    Its ``batch_sampler`` is a `SharedBatches`.
    """
    least = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    rows = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=least,
    )
    grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
    batches = SharedBatches(
        SAMPLERS[cfg.DATALOADER.SAMPLER_TRAIN](cfg, rows),
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        wide=[grouped and row["width"] > row["height"] for row in rows],
    )
    return DataLoader(
        SeededImages(DatasetFromList(rows, copy=False), DatasetMapper(cfg, True), batches),
        batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        worker_init_fn=ignore_in_worker,
        generator=Generator(),  # seeds of workers, which are not to be drawn from the run's own
    )


def _shuffled(cfg: CfgNode, rows: list[dict[str, Any]]) -> Callable[..., Any]:
    return partial(TrainingSampler, len(rows))


def _repeated(cfg: CfgNode, rows: list[dict[str, Any]]) -> Callable[..., Any]:
    keys = cfg.DATALOADER
    rooted = {"sqrt": keys.REPEAT_SQRT} if "REPEAT_SQRT" in keys else {}  # of newer detectron2
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        rows, keys.REPEAT_THRESHOLD, **rooted
    )
    return partial(RepeatFactorTrainingSampler, factors)


def _subset(cfg: CfgNode, rows: list[dict[str, Any]]) -> Callable[..., Any]:
    return partial(_one_subset, len(rows), cfg.DATALOADER.RANDOM_SUBSET_RATIO)


def _one_subset(size: int, ratio: float, *, seed: int) -> RandomSubsetTrainingSampler:
    return RandomSubsetTrainingSampler(size, ratio, seed_shuffle=seed, seed_subset=seed)


# DATALOADER.SAMPLER_TRAIN -> detectron2's sampler, which a seed completes
SAMPLERS: dict[str, Callable[[CfgNode, list[dict[str, Any]]], Callable[..., Any]]] = {
    "TrainingSampler": _shuffled,
    "RepeatFactorTrainingSampler": _repeated,
    "RandomSubsetTrainingSampler": _subset,
}
