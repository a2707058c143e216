"""The order of a detectron2 run's images and the randomness of each."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch

from moco_det.data.scenes import ScenesPaths

pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

from detectron2.config import CfgNode, get_cfg  # noqa: E402
from detectron2.data import build_detection_train_loader  # noqa: E402
from detectron2.utils import comm  # noqa: E402

from moco_det.plugin.datasets import put  # noqa: E402
from moco_det.plugin.loader import SharedBatches, training_loader  # noqa: E402

NAME = "wide and high"


def config(**changes: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_list(["DATASETS.TRAIN", (NAME,), "SOLVER.IMS_PER_BATCH", 4, "SEED", 3])
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0, 0.5
    cfg.merge_from_list([x for key, value in changes.items() for x in (f"DATALOADER.{key}", value)])
    return cfg


@pytest.fixture
def rows() -> None:
    """Thirteen images, every third of them wide; every fifth has the rarer class."""
    objects = [
        [{"bbox": [0, 0, 9, 9], "bbox_mode": 0, "category_id": int(n % 5 == 0)}] for n in range(13)
    ]
    found = [
        {"image_id": n, "width": 64 + 16 * (n % 3 == 0), "height": 64, "annotations": objects[n]}
        for n in range(13)
    ]
    put(NAME, lambda: found, thing_classes=["common", "rare"])


def ids(batches: Iterable[Any], count: int) -> list[list[int]]:
    return [[row["image_id"] for row in batch] for batch in itertools.islice(batches, count)]


def indices(cfg: CfgNode, count: int, done: int = 0) -> list[list[int]]:
    batches = training_loader(cfg).batch_sampler
    assert isinstance(batches, SharedBatches)
    batches.done = done
    return [[index for _, index in batch] for batch in itertools.islice(batches, count)]


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_images_come_in_detectron2s_order(sampler: str, grouped: bool) -> None:
    keys = {"SAMPLER_TRAIN": sampler, "ASPECT_RATIO_GROUPING": grouped, "REPEAT_THRESHOLD": 0.5}
    theirs = build_detection_train_loader(config(**keys), mapper=lambda row: row)
    assert indices(config(**keys), 30) == ids(theirs, 30)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize(
    "sampler", ["TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"]
)
def test_a_resumed_run_goes_on_with_the_batches_and_the_subset_it_had(sampler: str) -> None:
    cfg = config(SAMPLER_TRAIN=sampler)
    whole = indices(cfg, 20)
    assert indices(cfg, 13, done=7) == whole[7:]
    images = {index for batch in indices(cfg, 60) for index in batch}
    assert len(images) == (6 if sampler == "RandomSubsetTrainingSampler" else 13)


@pytest.mark.usefixtures("rows")
def test_processes_share_the_batches_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = indices(config(), 20)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(indices(config(), 20))
    assert [one + two for one, two in zip(*parts, strict=True)] == whole


def test_an_image_is_augmented_alike_whoever_loads_it(scenes: ScenesPaths) -> None:
    from moco_det.plugin import register_dataset

    register_dataset(scenes.train)
    found = []
    for workers, done in ((0, 0), (2, 0), (1, 3)):
        cfg = config(NUM_WORKERS=workers)
        cfg.merge_from_list(["DATASETS.TRAIN", (scenes.train,), "INPUT.MIN_SIZE_TRAIN", (64, 96)])
        loader = training_loader(cfg)
        loader.batch_sampler.done = done
        states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        images = [row["image"] for batch in itertools.islice(loader, 5 - done) for row in batch]
        assert torch.equal(torch.get_rng_state(), states[0])  # which anchors are drawn from
        assert (np.random.get_state()[1] == states[1]).all() and random.getstate() == states[2]
        found.append([torch.zeros(0)] * 4 * done + images)
    assert len({image.shape for image in found[0]}) == 2
    for one, two, later in zip(*found, strict=True):
        assert torch.equal(one, two) and (not later.numel() or torch.equal(one, later))
