"""Masks as COCO writes them: polygons that give a mask back, compressed run lengths checked.

pycocotools takes any string: what is none of its masks gives it areas and overlaps without meaning,
and pixels that nobody has written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pycocotools.mask

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Characters looked at in one go: their arrays stay in the cache, which makes it twice as fast.
CHUNK = 2**15
# What an outline may take to draw: pycocotools draws it in fifths of a pixel at 16 bytes each, and
# the mask head draws it again in the size of its box, here as if the head had 64 pixels.
LONGEST_OUTLINE = 2**20  # pixels
LONGEST_IN_BOX = 2**22


def compressed(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Polygons drawn as pycocotools draws them, as one RLE; an RLE as it is."""
    if isinstance(segmentation, list):
        parts = pycocotools.mask.frPyObjects(segmentation, height, width)
        segmentation = pycocotools.mask.merge(parts)
    return segmentation


def bounded(polygon: list[float], height: int, width: int) -> list[float]:
    """The polygon [x, y, ...], or what of it lies in the image where it goes farther than the image
    is large beyond it: to draw an outline takes memory by its length. Empty where nothing does.
    """
    size = max(height, width)
    if -size <= min(polygon) and max(polygon) <= 2 * size:
        return polygon
    points = np.array(polygon).reshape(-1, 2).clip(-1e9, 1e9)  # (N, 2)
    for axis, end in ((0, width), (1, height)):
        points = _cut(points, points[:, axis])
        points = _cut(points, end - points[:, axis])
    return points.ravel().tolist() if len(points) >= 3 else []


def too_long(polygon: Sequence[float], height: int, width: int, box: Sequence[float]) -> bool:
    """Whether an outline takes more memory to draw than any mask of an image of this size has."""
    points = np.array(polygon).reshape(-1, 2)
    steps = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1)
    length = float(steps.sum()) + len(points)
    inside = length * 64 / max(min(box[2] - box[0], box[3] - box[1]), 0.1)  # thinner is not scaled
    return length > min(LONGEST_OUTLINE, 8 * height * width + 64) or inside > LONGEST_IN_BOX


def _cut(points: Floats, inside: Floats) -> Floats:
    """The part of a polygon on one side of a line, `inside` (N,) the points' distances to it
    (Sutherland and Hodgman 1974)."""
    end, there = np.roll(points, -1, axis=0), np.roll(inside, -1)
    crosses = (inside < 0) != (there < 0)
    share = np.divide(inside, inside - there, out=np.zeros_like(inside), where=crosses)
    crossing = points + share[:, None] * (end - points)
    kept = np.stack([crosses, there >= 0], axis=1)
    return np.stack([crossing, end], axis=1)[kept]


def whole_masks(counts: Sequence[str | bytes], pixels: Sequence[int]) -> Bools:
    """Whether each string is a mask of so many pixels: its runs, none negative, add up to them.

    COCO's coding: a run's length is written in groups of five bits, lowest first, one per
    character from "0" on; 32 marks that more follow, 16 in the last group a negative number. From
    the fourth run on it is the difference to the run before the last that is written.
    """
    coded = [c.encode("utf-8", "replace") if isinstance(c, str) else c for c in counts]
    size = np.array([len(c) for c in coded], dtype=np.int64)
    sums = np.asarray(pixels, dtype=np.int64)
    good = np.zeros(len(coded), dtype=bool)
    low = 0
    ends = np.cumsum(size)
    while low < len(coded):
        start = ends[low] - size[low]
        high = max(low + 1, int(np.searchsorted(ends, start + CHUNK, side="right")))
        text = np.frombuffer(b"".join(coded[low:high]), dtype=np.uint8)
        good[low:high] = _whole(text, size[low:high], sums[low:high])
        low = high
    return good


def _whole(text: npt.NDArray[np.uint8], size: Ints, pixels: Ints) -> Bools:
    """`whole_masks` of masks whose characters (C,) follow each other, `size` (N,) of each."""
    code = text - np.uint8(48)  # wraps around: what is below "0" becomes more than 63
    end = np.cumsum(size)
    good = size > 0
    # every character known, the last of a mask the last of its number
    good[good] = code[end[good] - 1] < 32
    good[np.searchsorted(end, np.flatnonzero(code > 63), side="right")] = False
    if not good.all():
        code, size, pixels = code[np.repeat(good, size)], size[good], pixels[good]
    if not len(size):
        return good

    last = np.flatnonzero(code < 32)  # of each number
    first = np.concatenate(([0], last[:-1] + 1))
    length = last - first + 1
    value = (code[first] & 31).astype(np.int64)
    # Most numbers are one character. A run has 32 bits, seven groups.
    more = np.flatnonzero(length > 1)
    for group in range(1, 7):
        value[more] |= (code[first[more] + group] & 31).astype(np.int64) << (5 * group)
        more = more[length[more] > group + 1]
    below = np.flatnonzero(code[last] & 16)
    value[below] -= 1 << (5 * np.minimum(length[below], 7))

    count = np.diff(np.searchsorted(last, np.cumsum(size) - 1, side="right"), prepend=0)
    opens = np.cumsum(count) - count
    owner = np.repeat(np.arange(len(size)), count)
    # A run is the sum of every second difference up to it; the first run stands apart.
    value[opens], apart = 0, value[opens]
    for parity in (0, 1):
        total = np.cumsum(value[parity::2])
        before = np.concatenate(([0], total))[(opens + 1 - parity) // 2]
        value[parity::2] = total - before[owner[parity::2]]
    value[opens] = apart
    fits = np.add.reduceat(value, opens) == pixels
    fits[owner[value < 0]] = False
    fits[owner[more]] = False  # numbers of more than seven groups
    good[good] = fits
    return good


def mask_polygons(mask: npt.NDArray[np.bool_]) -> list[list[float]]:
    """COCO polygons [[x, y, ...], ...] of a boolean (H, W) mask, in continuous coordinates.

    A hole is joined to its outline by a cut of no width. Each mask pixel (x, y) covers
    [x, x + 1] x [y, y + 1], hence the extents of the polygons are the box of the mask.
    """
    # on the doubled grid pixel x is 2x and 2x + 1, so an edge point c belongs to edge (c + 1) // 2
    doubled = np.repeat(np.repeat(mask.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not len(contours):
        return []
    outlines = [_corners((c.reshape(-1, 2).astype(np.int64) + 1) // 2) for c in contours]
    parents = np.asarray(hierarchy).reshape(-1, 4)[:, 3]
    for hole in np.flatnonzero(parents >= 0):
        parent = int(parents[hole])
        outlines[parent] = _joined(outlines[parent], outlines[int(hole)])
    return [
        outlines[i].astype(float).ravel().tolist() for i in range(len(outlines)) if parents[i] < 0
    ]


def _corners(points: Ints) -> Ints:
    """Without repeated points and without points in the middle of a straight run."""
    points = points[np.any(points != np.roll(points, 1, axis=0), axis=1)]
    before = points - np.roll(points, 1, axis=0)
    after = np.roll(points, -1, axis=0) - points
    turn = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    back = (before * after).sum(axis=1) < 0
    return points[turn | back]


def _joined(outer: Ints, hole: Ints) -> Ints:
    """One closed line that runs around `outer` and, from the nearest corner, around `hole`."""
    gap = np.abs(outer[:, None] - hole[None]).sum(axis=2)
    i, j = np.unravel_index(int(gap.argmin()), gap.shape)
    around = np.concatenate([hole[j:], hole[: j + 1]])
    return np.concatenate([outer[: i + 1], around, outer[i:]])
