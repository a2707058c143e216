"""Padded selections, as a GPU gets them: the losses, gradients and detections of exact ones."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import roi_align

from moco_det.standalone import fixed_size, rpn
from moco_det.standalone.build import build_detector
from moco_det.standalone.detector import GeneralizedRCNN
from moco_det.standalone.masks import Bitmaps, Outlines, Polygons
from tests.golden.filling import fill, images
from tests.golden.settings import (
    EVERYTHING,
    MASKS,
    NARROW,
    R18,
    R50,
    SMALL_C4,
    SMALL_FPN,
    Settings,
    our_config,
)
from tests.standalone.targets import mask_targets, targets_of

DETECTORS = {
    "FPN": Settings("RCNN_FPN", R18, NARROW, MASKS, SMALL_FPN, EVERYTHING),
    "FPN with norms in the heads": Settings(
        "RCNN_FPN",
        [*R18, *NARROW, *MASKS, *SMALL_FPN, *EVERYTHING],
        ["MODEL.ROI_BOX_HEAD.NORM", "BN", "MODEL.ROI_BOX_HEAD.NUM_CONV", "1"],
        ["MODEL.ROI_BOX_HEAD.CONV_DIM", "16", "MODEL.ROI_MASK_HEAD.NORM", "BN"],
    ),
    "C4": Settings("RCNN_C4", R18, NARROW, MASKS, SMALL_C4, EVERYTHING),
    "DC5": Settings("RCNN_DC5", R50, SMALL_C4, EVERYTHING),
}


@pytest.fixture
def padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_size, "SYNCHRONOUS", set())


def detector(name: str) -> GeneralizedRCNN:
    model = build_detector(our_config(DETECTORS[name])).double()
    fill(model)
    return model


def trained(model: GeneralizedRCNN) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses, and the gradient of every parameter."""
    losses = model.train()(images(), targets_of())
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {name: loss.item() for name, loss in losses.items()}, gradients


@pytest.mark.parametrize("name", DETECTORS)
def test_a_step_has_the_losses_and_gradients_of_the_exact_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # everything is in the samples, so both ways of drawing draw the same
    losses, gradients = trained(detector(name))
    monkeypatch.setattr(fixed_size, "SYNCHRONOUS", set())
    monkeypatch.setattr(Outlines, "of", Polygons.of)  # masks by pycocotools, to be the same
    found, own = trained(detector(name))
    assert found == pytest.approx(losses, rel=1e-9)
    assert set(own) == set(gradients)
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(own[parameter], gradient, rtol=1e-7, atol=1e-10, msg=parameter)


@pytest.mark.parametrize("name", DETECTORS)
def test_detections_are_those_of_exact_selections(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = detector(name).eval()
    with torch.no_grad():
        expected = model(images())
        monkeypatch.setattr(fixed_size, "SYNCHRONOUS", set())
        found = model(images())
    for one, other in zip(found, expected, strict=True):
        assert len(one.boxes) == len(other.boxes) > 2
        assert torch.equal(one.classes, other.classes)
        torch.testing.assert_close(one.boxes, other.boxes)
        torch.testing.assert_close(one.scores, other.scores)


FEW = [
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "32", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"),
    *("MODEL.ROI_HEADS.POSITIVE_FRACTION", "0.25"),
]


class ReadValues(TorchDispatchMode):
    """Notes every call whose result's size, or Python's next step, depends on values."""

    NAMES = ("nonzero", "_local_scalar_dense", "masked_select", "is_nonzero", "unique", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        masked = name.startswith("index") and any(
            isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8)
            for t in (args[1] if isinstance(args[1], (list, tuple)) else [])
        )
        if any(word in name for word in self.NAMES) or masked:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "waits"), [("FPN", 0), ("C4", 1), ("DC5", 0)])
def test_a_step_reads_no_value_of_the_device(
    name: str, waits: int, padded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a sample is full, as it is of large images
    model = build_detector(our_config(DETECTORS[name].but(*FEW))).train()
    monkeypatch.setattr(rpn, "nms", lambda boxes, groups, real, *_: real)  # a kernel of its own
    targets = targets_of()
    model(images(), targets)  # constants are made once
    with ReadValues() as read:
        losses = model(images(), targets)
        sum(losses.values()).backward()
    # where the second stage has batch norm: whether every image has regions enough
    assert len(read.seen) <= waits, read.seen


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [(10, 30, (4, 12)), (2, 30, (2, 14)), (10, 3, (4, 3)), (0, 30, (0, 16)), (0, 0, (0, 0))],
)
def test_a_sample_has_its_share_of_positives_and_no_row_twice(
    positives: int,
    negatives: int,
    expected: tuple[int, int],
    exact: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not exact:
        monkeypatch.setattr(fixed_size, "SYNCHRONOUS", set())
    torch.manual_seed(0)
    labels = torch.cat([torch.full((positives,), 5), torch.full((negatives,), 7)])
    labels = torch.cat([labels, torch.full((9,), -1)])[torch.randperm(positives + negatives + 9)]
    both = torch.stack([labels, torch.full_like(labels, 7)])  # beside an image of negatives
    index, positive, real = fixed_size.subsample(both, 16, 0.25, background=7)
    assert [int(positive[0].sum()), int((real & ~positive)[0].sum())] == list(expected)
    assert set(both[0, index[0, positive[0]]].tolist()) <= {5}
    assert set(both[0, index[0, (real & ~positive)[0]]].tolist()) <= {7}
    drawn = index[0, real[0]].tolist()
    assert len(set(drawn)) == len(drawn)
    # positives come first, and what is none last
    assert sorted(positive[0].tolist(), reverse=True) == positive[0].tolist()
    assert sorted(real[0].tolist(), reverse=True) == real[0].tolist()


def test_every_row_is_as_likely(padded: None) -> None:
    torch.manual_seed(0)
    labels = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0, 0, -1]]).expand(4000, -1)
    index, positive, real = fixed_size.subsample(labels, 4, 0.5, background=0)
    assert bool(real.all())
    counts = index.flatten().bincount(minlength=10)
    # 2 of 4 positives and 2 of 5 negatives of 4,000 images: 2,000 and 1,600 times, 32 and 31 off
    assert (counts[:4] - 2000).abs().max() < 130 and (counts[4:9] - 1600).abs().max() < 130
    assert counts[9] == 0


def coco_polygons() -> Iterator[list[np.ndarray]]:
    """The polygons of real COCO objects, of one part and of several."""
    folder = Path(os.environ.get("MOCO_DET_DATA", "../shared/data")) / "coco2017_sample"
    files = sorted(folder.glob("annotations/instances_*.json"))
    if not files:
        pytest.skip("no COCO sample: set MOCO_DET_DATA")
    for file in files:
        for row in json.loads(file.read_text())["annotations"]:
            if isinstance(row["segmentation"], list):
                yield [np.asarray(polygon, dtype=np.float64) for polygon in row["segmentation"]]


def boxes_near(polygons: list[list[np.ndarray]]) -> Tensor:
    """Boxes that overlap each object, as proposals do."""
    random = np.random.RandomState(0)
    boxes = []
    for one in polygons:
        points = np.concatenate([p.reshape(-1, 2) for p in one])
        low, high = points.min(axis=0), points.max(axis=0)
        move = random.uniform(-0.15, 0.15, 4) * np.tile(high - low, 2)
        boxes.append(np.concatenate([low, high]) + move)
    return torch.tensor(np.array(boxes), dtype=torch.float32)


def test_outlines_are_rasterised_as_pycocotools_does_it_but_for_the_edge() -> None:
    polygons = list(coco_polygons())[:400]
    boxes = boxes_near(polygons)
    expected = mask_targets(polygons, boxes, 28)
    outlines = Outlines.of([polygons[:150], [], polygons[150:]], 250, torch.device("cpu"))
    objects = torch.cat([torch.arange(150), torch.arange(500, 500 + len(polygons) - 150)])
    found = outlines.inside(objects, boxes, 28)
    # detectron2's other way: bitmaps of the image, cropped by ROIAlign
    corner = [np.floor(box.numpy()).min() - 40 for box in boxes]
    crops = []
    for one, box, low in zip(polygons, boxes, corner, strict=True):
        side = int(float(box.max()) - low) + 40
        rle = coco_mask.merge(coco_mask.frPyObjects([p - low for p in one], side, side))
        crops.append(mask_targets([coco_mask.decode(rle).astype(bool)], box[None] - low, 28)[0])
    bitmaps = torch.stack(crops)
    ours, theirs = ((one != expected).float().mean().item() for one in (found, bitmaps))
    assert ours < theirs / 2 and ours < 0.01, (ours, theirs)


def test_outlines_by_hand(padded: None) -> None:
    square = np.array([0.0, 0, 0, 4, 4, 4, 4, 0])  # the other way round than the next
    triangle = np.array([4.0, 4, 8, 4, 4, 8])
    hollow = np.array([2.0, 2, 6, 2, 6, 6, 2, 6])  # overlaps both
    outlines = Outlines.of([[[square], [square, triangle, hollow]]], 2, torch.device("cpu"))
    box = torch.tensor([[0.0, 0, 8, 8]])
    one, two = outlines.inside(torch.tensor([0, 1]), box.expand(2, 4), 8)
    expected = np.zeros((8, 8), dtype=bool)
    expected[:4, :4] = True
    assert one.numpy().tolist() == expected.tolist()
    expected[2:6, 2:6] = True
    for row in range(4, 8):
        expected[row, 4 : 4 + 8 - row - 1] = True  # the centre on the edge is outside
    expected[4, 4:7] = True
    assert (two.numpy() != expected).sum() <= 3  # centres on the slanted edge


def test_bitmaps_are_cropped_as_one_by_one() -> None:
    random = np.random.RandomState(0)
    masks = [list(random.rand(3, 40, 50) > 0.5), [], list(random.rand(2, 30, 30) > 0.5)]
    boxes = torch.tensor([[2.0, 3, 30, 20], [0, 0, 50, 40], [7.5, 2.2, 9, 30], [1, 1, 20, 29]])
    objects = torch.tensor([0, 2, 7, 6])
    found = Bitmaps.of(masks, 3, torch.device("cpu")).inside(objects, boxes, 14)
    chosen = [masks[0][0], masks[0][2], masks[2][1], masks[2][0]]
    for one, mask, box in zip(found, chosen, boxes, strict=True):
        image = torch.from_numpy(mask).float()[None, None]
        assert torch.equal(one, roi_align(image, [box[None]], (14, 14), 1.0, 0, True)[0, 0] >= 0.5)


@pytest.mark.parametrize("name", ["FPN", "FPN with norms in the heads"])
def test_images_without_objects_take_the_step_of_exact_selections(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = targets_of(((), ()))
    expected = detector(name).train()(images(), targets)
    monkeypatch.setattr(fixed_size, "SYNCHRONOUS", set())
    found = detector(name).train()(images(), targets)
    assert found["loss_mask"] == 0
    for loss, value in expected.items():
        torch.testing.assert_close(found[loss], value, rtol=1e-9, atol=0, msg=loss)
