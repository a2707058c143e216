"""COCO's assignment of detections to objects, for all images, areas and IoU thresholds at once.

Letters: A area ranges, T IoU thresholds, N objects, D detections, P pairs of a detection and an
object that overlap enough to be matched at some threshold.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moco_det.scoring.arrays import Bools, Floats, Ints


class Pairs(NamedTuple):
    """P candidate pairs: positions of detection and object, and their IoU."""

    detection: Ints
    object: Ints
    iou: Floats

    def at(self, which: Bools | Ints) -> Pairs:
        """The pairs under a mask, or at these positions."""
        return Pairs(self.detection[which], self.object[which], self.iou[which])


class Matches(NamedTuple):
    """`detection` (D',): positions of those in some pair. `taken`, `right` (A, T, D'): whether it
    got an object, and whether one that counts."""

    detection: Ints
    taken: Bools
    right: Bools


def place_in_group(groups: Ints) -> Ints:
    """The position (from 0) of each among its equals, which follow each other."""
    opens = np.flatnonzero(np.diff(groups, prepend=-1))
    return np.arange(len(groups)) - np.repeat(opens, np.diff(opens, append=len(groups)))


def same_group(detections: Ints, objects: Ints) -> Pairs:
    """All pairs of equal key (one of each image and class), their IoU not yet computed.

    Ordered by detection, and within it by object.
    """
    order = np.argsort(objects, kind="stable")
    ordered = objects[order]
    start = np.searchsorted(ordered, detections, side="left")
    count = np.searchsorted(ordered, detections, side="right") - start
    total = int(count.sum())
    first = np.cumsum(count) - count  # each detection's first pair
    candidate = np.arange(total) - np.repeat(first - start, count)
    return Pairs(
        np.repeat(np.arange(len(detections)), count), order[candidate], np.full(total, np.nan)
    )


def match(
    pairs: Pairs, group: Ints, rank: Ints, *, wanted: Bools, crowd: Bools, thresholds: Floats
) -> Matches:
    """COCOeval's greedy matching.

    Within a group (D,) detections choose in the order of their `rank` (D,). Each takes, of the
    objects that are still free (a crowd always is) and whose IoU is not below the threshold, the
    one of largest IoU among those that are `wanted` (A, N), else among the others; of equal ones
    the last. Thresholds (T,).
    """
    # the order of a pair within its detection is its rank there: IoU, then the object's position
    order = np.lexsort((pairs.object, pairs.iou, pairs.detection))
    pairs = pairs.at(order)
    detection, first, which = np.unique(pairs.detection, return_index=True, return_inverse=True)
    turn = _turns(group[detection], rank[detection])
    # all pairs of one turn together: its detections belong to different groups
    order = np.argsort(turn[which], kind="stable")
    pairs, which = pairs.at(order), which[order]
    size = np.diff(first, append=len(which))

    areas, levels = len(wanted), len(thresholds)
    used = np.zeros((areas, levels, wanted.shape[1]), dtype=bool)
    taken = np.zeros((areas, levels, len(detection)), dtype=bool)
    right = np.zeros_like(taken)
    by_turn = np.argsort(turn, kind="stable")
    ends = np.cumsum(np.bincount(turn)) if len(turn) else np.zeros(0, dtype=np.int64)
    low = done = 0
    for end in ends:
        mine = by_turn[low:end]  # in the order of their pairs
        sizes = size[mine]
        here = slice(done, done + int(sizes.sum()))
        low, done = int(end), here.stop
        objects = pairs.object[here]
        near = pairs.iou[here] >= thresholds[:, None]
        free = ~used[:, :, objects] | crowd[objects]
        place = np.arange(1, len(objects) + 1)
        preferred = place + wanted[:, objects] * len(objects)  # (A, pairs): any wanted beats others
        key = np.where(free & near, preferred[:, None], 0)
        best = np.maximum.reduceat(key, np.cumsum(sizes) - sizes, axis=2)
        hit = best > 0
        taken[:, :, mine] = hit
        right[:, :, mine] = best > len(objects)
        a, t, d = np.nonzero(hit)
        used[a, t, objects[(best[a, t, d] - 1) % len(objects)]] = True
    return Matches(detection, taken, right)


def _turns(group: Ints, rank: Ints) -> Ints:
    """Each one's position within its group by rank, 0 the first."""
    order = np.lexsort((rank, group))
    turn = np.empty(len(group), dtype=np.int64)
    turn[order] = place_in_group(group[order])
    return turn
