"""Fitting the boxes of an annotation file to their image, and counting what had to be done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from moco_det.data.image import image_size
from moco_det.foundation.errors import InputError

Box = tuple[float, float, float, float]

# COCO's boxes are rounded to 0.01 px and overhang by that: not worth a word to anybody.
OVERHANG = 0.5

# No larger image opens, and a mask takes memory by its image's size and its sides.
MOST_PIXELS, LONGEST_SIDE = 2**28, 2**18


class Tally:
    """Counts of the things that were dropped or corrected, with the first place of each."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}
        self._largest = 0.0  # number in any box
        self._fractions = False

    def add(self, what: str, where: str) -> None:
        self._places.setdefault(what, []).append(where)

    def messages(self) -> tuple[str, ...]:
        return tuple(
            f"{len(places)} {what} (first: {places[0]})" for what, places in self._places.items()
        )

    def saw(self, box: Sequence[float]) -> None:
        """Take note of a box in the file's own numbers."""
        self._largest = max(self._largest, *box)
        self._fractions = self._fractions or any(value % 1 for value in box)

    def check_pixels(self, source: str) -> None:
        """InputError where no box of them all reaches beyond the first pixel."""
        if self._fractions and self._largest <= 1:
            raise InputError(
                f"{source}: every box lies within 0..1, which are shares of the image's sides: "
                "multiply them by its width and height, boxes are in pixels"
            )


def sides_of(height: Any, width: Any, image: str) -> tuple[int, int]:
    """(height, width) as an annotation file says them, or the image's own where it cannot be."""
    for _ in range(2):
        whole = isinstance(height, int) and isinstance(width, int)
        fits = whole and min(height, width) > 0 and max(height, width) <= LONGEST_SIDE
        if fits and height * width <= MOST_PIXELS:
            return height, width
        height, width = image_size(image)
    raise InputError(
        f"image {image} is {width}x{height} pixels: scale it down, no side may be above "
        f"{LONGEST_SIDE} and not more than {MOST_PIXELS} pixels in all"
    )


def fit_box(
    box: Sequence[float], height: int, width: int, tally: Tally, where: str, *, first: float = 0
) -> Box | None:
    """`box` (xyxy) clipped to the image; None when nothing is left of it. Both are counted.

    `first` is the number of the first pixel in the file: VOC counts from 1 and to the last pixel
    inside, which is where a box ends that counts from 0.
    """
    x0, y0, x1, y1 = box
    if not all(math.isfinite(value) for value in box):
        tally.add("boxes with a coordinate that is no number dropped", where)
        return None
    tally.saw(box)
    if x1 < x0 or y1 < y0:
        tally.add("boxes with xmax below xmin or ymax below ymin dropped", where)
        return None
    if x1 == x0 or y1 == y0:
        # before the shift, which would turn a point into one pixel
        tally.add("boxes of zero area dropped", where)
        return None
    box = (x0 - first, y0 - first, x1, y1)
    clipped = (max(box[0], 0.0), max(box[1], 0.0), min(x1, float(width)), min(y1, float(height)))
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        tally.add("boxes wholly outside their image dropped", where)
        return None
    if max(abs(new - old) for new, old in zip(clipped, box, strict=True)) > OVERHANG:
        tally.add("boxes clipped to their image", where)
    return clipped
