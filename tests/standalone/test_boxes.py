"""Box arithmetic against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moco_det.standalone.boxes import (
    LOG_SIZE_CLAMP,
    BoxCoder,
    Matcher,
    clip,
    nonempty,
    overlaps,
    pairwise_iou,
)
from moco_det.standalone.fixed_size import pad, present, subsample

CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))
PLAIN = BoxCoder((1.0, 1.0, 1.0, 1.0))


def test_encode_by_hand() -> None:
    source = torch.tensor([[0.0, 0, 10, 20]])  # centre (5, 10), size (10, 20)
    target = torch.tensor([[5.0, 10, 25, 50]])  # centre (15, 30), size (20, 40)
    # dx = 10 (15 - 5) / 10, dy = 10 (30 - 10) / 20, dw = dh = 5 log 2
    expected = torch.tensor([[10.0, 10.0, 5 * math.log(2), 5 * math.log(2)]])
    torch.testing.assert_close(CODER.encode(source, target), expected)


def test_decode_by_hand_for_every_class() -> None:
    box = torch.tensor([[0.0, 0, 10, 20]])
    deltas = torch.tensor([[0.0, 0, 0, 0, 10, 10, 5 * math.log(2), 5 * math.log(2)]])
    torch.testing.assert_close(
        CODER.decode(deltas, box), torch.tensor([[0.0, 0, 10, 20, 5, 10, 25, 50]])
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_decode_undoes_encode(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(2, 6, 2, generator=random) * 100
    source, target = torch.cat(
        [corners, corners + 2 + 50 * torch.rand(2, 6, 2, generator=random)], dim=2
    )
    decoded = CODER.decode(CODER.encode(source, target), source)
    torch.testing.assert_close(decoded, target, atol=1e-3, rtol=1e-5)


def test_decode_never_grows_a_16_pixel_side_beyond_1000() -> None:
    box = torch.tensor([[0.0, 0, 16, 16]])
    decoded = PLAIN.decode(torch.tensor([[0.0, 0, 50, LOG_SIZE_CLAMP]]), box)
    torch.testing.assert_close(decoded, torch.tensor([[-492.0, -492, 508, 508]]))  # 8 +- 500


def test_no_boxes_are_coded_to_no_boxes() -> None:
    nothing = torch.zeros(0, 4)
    assert CODER.encode(nothing, nothing).shape == (0, 4)
    assert CODER.decode(torch.zeros(0, 12), nothing).shape == (0, 12)


def test_overlaps_by_hand() -> None:
    truth = torch.tensor([[0.0, 0, 2, 2], [5, 5, 5, 9]])
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2], [0, 0, 4, 1]])
    # the same; 1 / (4 + 4 - 1); touching only; 2 / (4 + 4 - 2). A box without area meets nothing.
    expected = torch.tensor([[1.0, 1 / 7, 0, 1 / 3], [0, 0, 0, 0]])
    torch.testing.assert_close(pairwise_iou(truth, boxes), expected)


def test_overlaps_of_nothing() -> None:
    assert pairwise_iou(torch.zeros(0, 4), torch.ones(3, 4)).shape == (0, 3)
    assert pairwise_iou(torch.ones(3, 4), torch.zeros(0, 4)).shape == (3, 0)
    # two boxes without area, one in the other: 0 / 0 counts as no overlap
    assert pairwise_iou(torch.ones(1, 4), torch.ones(1, 4)).tolist() == [[0.0]]


def test_clip_and_nonempty_by_hand() -> None:
    boxes = torch.tensor([[-5.0, -5, 30, 8], [25, 2, 40, 6], [3, 4, 3, 9]])
    (clipped,) = clip(boxes[None], [(10, 20)])
    assert clipped.tolist() == [[0, 0, 20, 8], [20, 2, 20, 6], [3, 4, 3, 9]]
    assert nonempty(clipped).tolist() == [True, False, False]
    assert nonempty(clipped, 8.0).tolist() == [False, False, False]  # longer than, not as long as


def test_matching_thresholds_are_closed_below() -> None:
    matcher = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality=False)
    overlap = torch.tensor([[0.0, 0.29999, 0.3, 0.69999, 0.7, 1.0]])
    index, labels = matcher(overlap)
    assert labels.tolist() == [0, 0, -1, -1, 1, 1]
    assert index.tolist() == [0] * 6


def test_the_best_box_of_each_object_is_positive_ties_included() -> None:
    overlap = torch.tensor([[0.2, 0.1, 0.2, 0.1], [0.1, 0.05, 0.5, 0.0]])
    # object 0 is overlapped best, 0.2, by boxes 0 and 2; object 1 by box 2.
    # A box keeps the object that it overlaps most: box 2 stays with object 1.
    index, labels = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality=True)(overlap)
    assert labels.tolist() == [1, 0, 1, 0]
    assert index.tolist() == [0, 0, 1, 0]
    _, strict = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality=False)(overlap)
    assert strict.tolist() == [0, 0, -1, 0]


def test_an_object_that_no_box_touches_makes_all_untouched_boxes_positive() -> None:
    # its best overlap is 0, and every box that has 0 with it ties: detectron2's rule, kept
    overlap = torch.tensor([[0.8, 0.1, 0.0], [0.0, 0.0, 0.0]])
    _, labels = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality=True)(overlap)
    assert labels.tolist() == [1, 1, 1]


@pytest.mark.parametrize("low_quality", [True, False])
def test_without_objects_every_box_is_negative(low_quality: bool) -> None:
    index, labels = Matcher([0.5], [0, 1], allow_low_quality=low_quality)(torch.zeros(0, 3))
    assert labels.tolist() == [0, 0, 0] and index.tolist() == [0, 0, 0]
    index, labels = Matcher([0.5], [0, 1], allow_low_quality=low_quality)(torch.zeros(2, 0))
    assert labels.shape == (0,) and index.shape == (0,)


def test_samples_are_random_and_seeded() -> None:
    labels = torch.zeros(1000, dtype=torch.int64)

    def draw(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return subsample(labels[None], 10, 0.5, background=0)[0].tolist()

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize(
    ("beta", "expected"),
    [(0.0, 2.5), (1.0, 0.5 * 0.5**2 + (2 - 0.5)), (0.5, 0.5 * 0.5 + (2 - 0.25))],
)
def test_smooth_l1_by_hand(beta: float, expected: float) -> None:
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0), beta)
    box = torch.tensor([[0.0, 0.0, 2.0, 4.0]]).expand(2, 4)  # is its own target: the goal is 0
    deltas = torch.tensor([[0.5, -2.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]])
    found = coder.loss(deltas, box, box, torch.tensor([True, False]))
    assert found.item() == pytest.approx(expected)
    assert coder.loss(deltas[:0], box[:0], box[:0], torch.zeros(0, dtype=torch.bool)).item() == 0


@pytest.mark.parametrize("low_quality", [True, False])
def test_a_batch_is_matched_as_its_images_are(low_quality: bool) -> None:
    random = torch.Generator().manual_seed(0)
    matcher = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality=low_quality)
    low = torch.rand(60, 2, generator=random) * 10
    boxes = torch.cat([low, low + 1 + 5 * torch.rand(60, 2, generator=random)], dim=1)
    truth = [boxes[:3] + 0.5, boxes[:0], boxes[20:21], torch.tensor([[90.0, 90, 95, 95]])]
    index, labels = matcher(overlaps(pad(truth), present(truth), boxes))
    for i, one in enumerate(truth):
        expected = matcher(pairwise_iou(one, boxes))
        assert torch.equal(index[i], expected[0]) and torch.equal(labels[i], expected[1])
    # boxes of their own, of which an image has fewer than another
    counts = torch.tensor([60, 10, 25, 0])
    own = boxes.expand(4, 60, 4)
    index, labels = matcher(
        overlaps(pad(truth), present(truth), own, torch.arange(60) < counts[:, None])
    )
    for i, (one, count) in enumerate(zip(truth, counts.tolist(), strict=True)):
        expected = matcher(pairwise_iou(one, boxes[:count]))
        assert torch.equal(index[i, :count], expected[0])
        assert torch.equal(labels[i, :count], expected[1])
