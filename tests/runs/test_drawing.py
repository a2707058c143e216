"""Drawn detections, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pycocotools.mask
import pytest

from moco_det.report.detections import Box, free_spot
from moco_det.runs.drawing import MASK_OPACITY, class_colours, draw_detections

COLOURS = class_colours(("cat", "dog"))


def grey(height: int = 60, width: int = 80) -> np.ndarray:
    return np.full((height, width, 3), 100, dtype=np.uint8)


def test_a_box_is_drawn_on_the_pixels_of_its_edges_and_the_image_is_left_alone() -> None:
    image = grey()
    drawn = draw_detections(image, [Box((10, 30, 40, 50), "cat", 0.9)], COLOURS)
    assert (image == 100).all() and drawn.shape == image.shape and drawn.dtype == np.uint8
    # the box covers the pixels 10 .. 39 and 30 .. 49; its label stands above it
    for y, x in ((40, 10), (40, 39), (30, 30), (49, 20), (30, 10), (49, 39)):
        assert tuple(drawn[y, x]) == COLOURS["cat"], (y, x)
    for y, x in ((40, 9), (40, 11), (40, 25), (40, 38), (40, 40), (50, 20), (48, 20), (31, 30)):
        assert (drawn[y, x] == 100).all(), (y, x)


def test_a_mask_is_blended_and_its_hole_is_not() -> None:
    mask = np.zeros((60, 80), np.uint8, order="F")
    mask[20:50, 20:60] = 1
    mask[30:40, 30:50] = 0
    rle = pycocotools.mask.encode(mask)
    segmentation = {"size": [60, 80], "counts": rle["counts"].decode()}
    box = Box((0, 0, 0, 0), "dog", 0.9, segmentation)
    drawn = draw_detections(grey(), [box], COLOURS).astype(float)
    expected = 100 * (1 - MASK_OPACITY) + np.array(COLOURS["dog"]) * MASK_OPACITY
    assert np.abs(drawn[25, 25] - expected).max() <= 1
    assert (drawn[35, 40] == 100).all() and (drawn[55, 70] == 100).all()


def test_the_best_box_is_on_top() -> None:
    boxes = [Box((10, 40, 120, 90), "cat", 0.9), Box((10, 40, 120, 90), "dog", 0.3)]
    for order in (boxes, boxes[::-1]):
        drawn = draw_detections(grey(120, 160), order, COLOURS)
        assert (drawn[65, [10, 119]] == COLOURS["cat"]).all()


def test_a_label_stays_in_the_picture_wherever_its_box_is() -> None:
    for box in ((-30, -20, 20, 30), (60, 40, 120, 90), (0, 0, 80, 60)):
        image = grey()
        drawn = draw_detections(image, [Box(box, "cat", 1.0)], COLOURS)
        filled = (drawn == COLOURS["cat"]).all(axis=2)
        assert filled.sum() > 100, box


def test_labels_do_not_cover_each_other() -> None:
    taken: list = []
    frame = (10.0, 30.0, 40.0, 70.0)
    spots = [free_spot(frame, (20.0, 8.0), (100.0, 100.0), taken) for _ in range(5)]
    assert spots == [(10.0, 22.0), (10.0, 30.0), (10.0, 62.0), (10.0, 70.0), None]
    assert free_spot((95.0, 0.0, 100.0, 9.0), (20.0, 8.0), (100.0, 100.0), []) == (80.0, 0.0)


def test_nothing_found_is_the_same_picture() -> None:
    assert np.array_equal(draw_detections(grey(), [], COLOURS), grey())


@pytest.mark.parametrize("count", [2, 20, 80])
def test_every_class_has_a_colour_of_its_own(count: int) -> None:
    colours = class_colours([f"c{i}" for i in range(count)])
    assert len(set(colours.values())) == count
    assert colours == class_colours([f"c{i}" for i in range(count)])
