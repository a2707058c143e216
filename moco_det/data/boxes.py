"""Fitting the boxes of an annotation file to their image, and counting what had to be done."""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]

# COCO's boxes are rounded to 0.01 px and overhang by that: not worth a word to anybody.
OVERHANG = 0.5


class Tally:
    """Counts of the things that were dropped or corrected, with the first place of each."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}

    def add(self, what: str, where: str) -> None:
        self._places.setdefault(what, []).append(where)

    def messages(self) -> tuple[str, ...]:
        return tuple(
            f"{len(places)} {what} (first: {places[0]})" for what, places in self._places.items()
        )


def fit_box(box: Sequence[float], height: int, width: int, tally: Tally, where: str) -> Box | None:
    """`box` (xyxy) clipped to the image; None when nothing is left of it. Both are counted."""
    x0, y0, x1, y1 = box
    if not all(math.isfinite(value) for value in box):
        tally.add("boxes with a coordinate that is no number dropped", where)
        return None
    if x1 <= x0 or y1 <= y0:
        tally.add("boxes of zero area dropped", where)
        return None
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        tally.add("boxes wholly outside their image dropped", where)
        return None
    if max(abs(new - old) for new, old in zip(clipped, box, strict=True)) > OVERHANG:
        tally.add("boxes clipped to their image", where)
    return clipped
