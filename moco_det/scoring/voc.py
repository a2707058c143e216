"""PASCAL VOC average precision, vectorised.

The devkit counts pixels: boxes are 1-based and inclusive and a side is max - min + 1. Our boxes
are continuous, [xmin - 1, ymin - 1, xmax, ymax], so a side is max - min and every overlap below
equals the devkit's. Boxes are taken in full precision (detectron2 rounds them to 0.1 px and
scores to 0.001 on their way through a text file).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from moco_det.data.records import DetectionDataset
from moco_det.foundation.errors import InputError
from moco_det.scoring.arrays import Bools, Detections, Floats, Ints, objects_of
from moco_det.scoring.predictions import Row, checked_detections

IOU_PERCENT = tuple(range(50, 100, 5))


def score_voc(
    dataset: DetectionDataset,
    predictions: list[Row],
    *,
    metric: Literal["2007", "area"] = "area",
) -> dict[str, Any]:
    """{"AP", "AP50", "AP75", "metric", "per_class"} in percent; AP is the mean over IoU .5:.05:.95.

    `metric`: "2007" is the 11-point AP of VOC 2007, "area" the area under the envelope of VOC 2010
    and later. A detection takes the object it overlaps most, if by more than the threshold; further
    detections of it are mistakes; difficult objects are ignored. A class without objects is None
    and outside the mean (the devkit divides by zero there).
    """
    if metric not in ("2007", "area"):
        raise InputError(f"VOC metric {metric!r} is not known: use 2007 or area")
    found = checked_detections(predictions, dataset)
    classes = len(dataset.classes)
    gt_key, difficult, overlap, match = _match(dataset, found, classes)
    order = np.argsort(-found.score, kind="stable")  # ties in file order

    ap = np.full((len(IOU_PERCENT), classes), np.nan)
    wanted = np.bincount(gt_key[~difficult] % classes, minlength=classes)
    category = found.category[order]
    for c in np.flatnonzero(wanted):
        mine = order[category == c]  # this class's detections, best score first
        for t, percent in enumerate(IOU_PERCENT):
            hit, counted = _judge(overlap[mine], match[mine], difficult, percent / 100.0)
            ap[t, c] = average_precision(hit[counted], int(wanted[c]), metric)

    per_class = {
        name: float(ap[:, c].mean() * 100) if wanted[c] else None
        for c, name in enumerate(dataset.classes)
    }
    defined = ap[:, wanted > 0]
    empty = defined.size == 0

    def mean(values: Floats) -> float | None:
        return None if empty else float(values.mean() * 100)

    return {
        "AP": mean(defined),
        "AP50": mean(defined[IOU_PERCENT.index(50)]),
        "AP75": mean(defined[IOU_PERCENT.index(75)]),
        "metric": metric,
        "per_class": per_class,
    }


def average_precision(hits: Bools, wanted: int, metric: Literal["2007", "area"]) -> float:
    """AP (0..1) of detections in order of falling score, of which `hits` are right."""
    if hits.size == 0:
        return 0.0
    right = np.cumsum(hits)
    recall = right / float(wanted)
    precision = right / np.arange(1, hits.size + 1)
    # best precision at this recall or a higher one
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if metric == "2007":
        first = np.searchsorted(recall, np.arange(0.0, 1.1, 0.1), side="left")
        reached = first < hits.size
        return float(envelope[first[reached]].sum() / 11.0)
    steps = np.diff(recall, prepend=0.0)
    return float((steps * envelope).sum())


def _judge(overlap: Floats, match: Ints, difficult: Bools, threshold: float) -> tuple[Bools, Bools]:
    """(right, counted) of one class's detections, best score first."""
    near = overlap > threshold
    ignored = np.zeros(len(near), dtype=bool)
    ignored[near] = difficult[match[near]]
    claims = np.flatnonzero(near & ~ignored)
    _, first = np.unique(match[claims], return_index=True)
    hit = np.zeros(len(near), dtype=bool)
    hit[claims[first]] = True
    return hit, ~ignored


def _match(
    dataset: DetectionDataset, found: Detections, classes: int
) -> tuple[Ints, Bools, Floats, Ints]:
    """Each detection's best object among those of its image and class.

    Returns the objects' sorted keys (image x classes + class) and their difficult flags, each
    detection's best overlap (-inf without objects) and the object's position.
    """
    truth = objects_of(dataset)
    gt_key = truth.image * classes + truth.category
    by_key = np.argsort(gt_key, kind="stable")
    gt_key, gt_box = gt_key[by_key], truth.box[by_key]
    key = found.image * classes + found.category
    box = np.concatenate([found.box[:, :2], found.box[:, :2] + found.box[:, 2:]], axis=1)

    start = np.searchsorted(gt_key, key, side="left")
    count = np.searchsorted(gt_key, key, side="right") - start
    overlap = np.full(len(key), -np.inf)
    match = np.full(len(key), -1, dtype=np.int64)
    some = np.flatnonzero(count)
    if some.size:
        count, start = count[some], start[some]
        offset = np.concatenate(([0], np.cumsum(count)[:-1]))  # each detection's first pair
        detection = np.repeat(some, count)
        candidate = np.arange(count.sum()) - np.repeat(offset - start, count)
        iou = _iou(box[detection], gt_box[candidate])
        best = np.maximum.reduceat(iou, offset)
        # among equals the first object, as argmax takes
        place = np.where(iou == np.repeat(best, count), candidate, len(gt_key))
        overlap[some] = best
        match[some] = np.minimum.reduceat(place, offset)
    return gt_key, truth.ignored[by_key], overlap, match


def _iou(a: Floats, b: Floats) -> Floats:
    """IoU of paired xyxy boxes, (N, 4) and (N, 4) to (N,)."""
    low = np.maximum(a[:, :2], b[:, :2])
    high = np.minimum(a[:, 2:], b[:, 2:])
    sides = np.maximum(high - low, 0.0)
    inner = sides[:, 0] * sides[:, 1]
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    return inner / (area_a + area_b - inner)
