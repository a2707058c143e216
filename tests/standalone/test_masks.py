"""Mask targets on shapes whose pixels are known."""

from __future__ import annotations

import numpy as np
import torch

from tests.standalone.targets import mask_targets

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
