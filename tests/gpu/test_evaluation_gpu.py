"""Evaluation on a GPU: masks are encoded there, and a batch's rows take few waits."""

from __future__ import annotations

import warnings

import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F

from moco_det.data import load_dataset
from moco_det.data.scenes import ScenesPaths
from moco_det.foundation.precision import Precision
from moco_det.settings.config import load_config
from moco_det.standalone import evaluate, pasting
from moco_det.standalone.build import build_mapper
from moco_det.standalone.evaluate import predict, to_rows
from moco_det.standalone.mapper import Sample
from moco_det.standalone.pasting import encode_masks
from moco_det.standalone.roi_layers import ImageDetections
from tests.standalone.trained import briefly_trained, overrides_of

pytestmark = pytest.mark.gpu


def soft_masks(count: int) -> tuple[Tensor, Tensor]:
    """Smooth masks and their boxes in an image of 480 x 640."""
    random = torch.Generator().manual_seed(2)
    coarse = torch.rand(count, 1, 5, 5, generator=random)
    masks = F.interpolate(coarse, (28, 28), mode="bilinear")[:, 0]
    corner = torch.rand(count, 2, generator=random) * torch.tensor([600, 440])
    extent = 3 + 200 * torch.rand(count, 2, generator=random)
    end = torch.minimum(corner + extent, torch.tensor([640.0, 480]))
    return masks, torch.cat([corner, end], dim=1)


@pytest.mark.parametrize("at_once", [2**14, 2**23])
def test_masks_have_the_pixels_of_a_cpus(
    at_once: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks, boxes = soft_masks(300)
    sizes = torch.tensor([[480, 640]]).repeat(len(masks), 1)
    expected = encode_masks(masks, boxes, sizes)
    monkeypatch.setitem(pasting.AT_ONCE, device, at_once)
    found = encode_masks(masks.to(device), boxes, sizes)
    one, other = (
        coco_mask.decode([{"size": [480, 640], "counts": text} for text in texts])
        for texts in (found, expected)
    )
    # a sample at a half may fall to either side
    assert (one != other).sum() <= 1e-4 * other.sum()


def test_the_rows_of_a_batch_wait_few_times_for_the_device(device: str) -> None:
    masks, boxes = soft_masks(100)
    found = ImageDetections(
        boxes.to(device),
        torch.rand(100).to(device),
        torch.zeros(100, dtype=torch.int64, device=device),
        masks.to(device),
    )
    sample = Sample(torch.zeros(3, 480, 640, dtype=torch.uint8), 480, 640, 1)
    to_rows([sample], [found], [1])  # constants are made once
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rows = to_rows([sample] * 8, [found] * 8, [1])
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert [len(part) for part in rows] == [100] * 8
    waits = [str(w.message) for w in caught if "synchroniz" in str(w.message)]
    assert len(waits) <= 12, waits


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_rows_made_beside_the_model_are_those_made_in_turn(
    precision: str, device: str, painted: ScenesPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = briefly_trained("FPN masks", painted, device=device, steps=5)
    cfg = load_config(*overrides_of("FPN masks"))
    mapper, dataset = build_mapper(cfg, train=False), load_dataset(painted.test)
    monkeypatch.setattr(evaluate, "BATCH", 1)
    beside = predict(model, dataset, mapper, Precision(precision, device), workers=2)
    monkeypatch.setattr(
        evaluate.SideStream, "start", lambda self, f, *arguments: lambda: f(*arguments)
    )
    in_turn = predict(model, dataset, mapper, Precision(precision, device))
    assert len(beside) > len(dataset)
    assert beside == in_turn
