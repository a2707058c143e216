"""Polygons that follow the edges of a mask's pixels, so that drawing them gives the mask back."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.int64]  # (N, 2) x, y


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


def _corners(points: Points) -> Points:
    """Without repeated points and without points in the middle of a straight run."""
    points = points[np.any(points != np.roll(points, 1, axis=0), axis=1)]
    before = points - np.roll(points, 1, axis=0)
    after = np.roll(points, -1, axis=0) - points
    turn = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    back = (before * after).sum(axis=1) < 0
    return points[turn | back]


def _joined(outer: Points, hole: Points) -> Points:
    """One closed line that runs around `outer` and, from the nearest corner, around `hole`."""
    gap = np.abs(outer[:, None] - hole[None]).sum(axis=2)
    i, j = np.unravel_index(int(gap.argmin()), gap.shape)
    around = np.concatenate([hole[j:], hole[: j + 1]])
    return np.concatenate([outer[: i + 1], around, outer[i:]])
