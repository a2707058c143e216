"""Mask targets and pasted masks on shapes whose pixels are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from moco_det.standalone import masks
from moco_det.standalone.masks import encode_mask, mask_targets, paste_masks

SQUARE = [np.array([2.0, 2, 6, 2, 6, 6, 2, 6])]


def pixels(rows: slice, columns: slice, side: int = 8) -> np.ndarray:
    image = np.zeros((side, side), dtype=bool)
    image[rows, columns] = True
    return image


def test_a_square_polygon_covers_its_pixels() -> None:
    boxes = torch.tensor([[0.0, 0, 8, 8], [2, 2, 6, 6], [0, 0, 16, 16], [4, 0, 8, 8]])
    whole, inner, far, right = mask_targets([SQUARE] * 4, boxes, 8).numpy()
    np.testing.assert_array_equal(whole, pixels(slice(2, 6), slice(2, 6)))
    assert inner.all()  # the box is the square
    np.testing.assert_array_equal(far, pixels(slice(1, 3), slice(1, 3)))  # half as large
    # x 4..8 becomes 0..8, so the square's 4..6 is 0..4; y is as it was
    np.testing.assert_array_equal(right, pixels(slice(2, 6), slice(0, 4)))


def test_polygons_of_one_object_are_joined_and_moving_all_changes_nothing() -> None:
    two = [np.array([0.0, 0, 2, 0, 2, 2, 0, 2]), np.array([4.0, 4, 8, 4, 8, 8, 4, 8])]
    box = torch.tensor([[0.0, 0, 8, 8]])
    expected = pixels(slice(0, 2), slice(0, 2)) | pixels(slice(4, 8), slice(4, 8))
    np.testing.assert_array_equal(mask_targets([two], box, 8)[0].numpy(), expected)
    moved = [polygon + 100 for polygon in two]
    np.testing.assert_array_equal(mask_targets([moved], box + 100, 8)[0].numpy(), expected)


def test_a_bitmap_is_cropped_and_scaled() -> None:
    bitmap = pixels(slice(0, 8), slice(0, 4))  # the left half
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 4, 4], [2, 0, 6, 8]])
    half, full, middle = mask_targets([bitmap] * 3, boxes, 4).numpy()
    expected = pixels(slice(0, 4), slice(0, 2), side=4)
    np.testing.assert_array_equal(half, expected)
    assert full.all()
    np.testing.assert_array_equal(middle, expected)  # x 2..4 of 2..6


def test_bitmaps_and_polygons_of_the_same_square_agree() -> None:
    bitmap = pixels(slice(2, 6), slice(2, 6))
    box = torch.tensor([[0.0, 0, 8, 8]])
    assert torch.equal(mask_targets([bitmap], box, 8), mask_targets([SQUARE], box, 8))


def test_no_masks_and_a_mask_without_polygons() -> None:
    assert mask_targets([], torch.zeros(0, 4), 28).shape == (0, 28, 28)
    assert not mask_targets([[]], torch.tensor([[0.0, 0, 8, 8]]), 8).any()


def test_a_box_without_width_does_not_blow_up_its_polygon() -> None:
    assert mask_targets([SQUARE], torch.tensor([[3.0, 0, 3, 8]]), 8).shape == (1, 8, 8)


def paste_mask(mask: torch.Tensor, box: torch.Tensor, height: int, width: int) -> np.ndarray:
    (image,) = paste_masks(mask[None], box[None], height, width)
    return image


def test_many_masks_are_pasted_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    low = torch.rand(30, 2, generator=random) * 50 - 10
    boxes = torch.cat([low, low + 1 + 40 * torch.rand(30, 2, generator=random)], dim=1)
    masks_ = torch.rand(30, 14, 14, generator=random)
    expected = [paste_mask(m, box, 40, 60) for m, box in zip(masks_, boxes, strict=True)]
    for limit in (1, 5000, 10**6):  # one by one, some together, all at once
        monkeypatch.setattr(masks, "PASTED_AT_ONCE", limit)
        found = list(paste_masks(masks_, boxes, 40, 60))
        np.testing.assert_array_equal(found, expected)
    assert list(paste_masks(masks_[:0], boxes[:0], 40, 60)) == []


def test_a_full_mask_fills_its_box_and_nothing_else() -> None:
    image = paste_mask(torch.ones(4, 4), torch.tensor([2.0, 1, 6, 5]), 8, 8)
    np.testing.assert_array_equal(image, pixels(slice(1, 5), slice(2, 6)))
    # a mask texel of two pixels: the outermost centres lie 1/4 texel outside the mask's, and
    # 0.75 * 0.75 = 0.56 of a corner is left
    assert paste_mask(torch.ones(4, 4), torch.tensor([0.0, 0, 8, 8]), 8, 8).all()


def test_half_a_mask_fills_half_its_box() -> None:
    mask = torch.zeros(4, 4)
    mask[:, :2] = 1
    image = paste_mask(mask, torch.tensor([0.0, 0, 8, 8]), 8, 8)
    # between the columns 1 and 2 of the mask lies x = 4: 3.5 has 0.75, 4.5 has 0.25
    np.testing.assert_array_equal(image, pixels(slice(0, 8), slice(0, 4)))


def test_exactly_a_half_is_inside() -> None:
    image = paste_mask(torch.full((4, 4), 0.5), torch.tensor([0.0, 0, 4, 4]), 4, 4)
    assert image.all()
    assert not paste_mask(torch.full((4, 4), 0.49), torch.tensor([0.0, 0, 4, 4]), 4, 4).any()


def test_what_hangs_over_the_image_is_cut_and_outside_is_nothing() -> None:
    image = paste_mask(torch.ones(4, 4), torch.tensor([6.0, 6, 10, 10]), 8, 8)
    np.testing.assert_array_equal(image, pixels(slice(6, 8), slice(6, 8)))
    assert not paste_mask(torch.ones(4, 4), torch.tensor([20.0, 20, 24, 24]), 8, 8).any()


def test_run_lengths_hold_the_image() -> None:
    image = pixels(slice(1, 5), slice(2, 3))
    row = encode_mask(image)
    assert row["size"] == [8, 8] and isinstance(row["counts"], str)
    np.testing.assert_array_equal(coco_mask.decode(row).astype(bool), image)
