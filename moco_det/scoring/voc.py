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
from moco_det.scoring.arrays import Bools, DetectionArrays, Floats, Ints, ObjectArrays, objects_of
from moco_det.scoring.coco_matching import same_group
from moco_det.scoring.predictions import Row, check_predictions

IOU_PERCENT = tuple(range(50, 100, 5))


def score_voc(
    dataset: DetectionDataset, predictions: list[Row], *, metric: Literal["2007", "area"] = "area"
) -> dict[str, Any]:
    """{"AP", "AP50", "AP75", "metric", "per_class"} in percent; AP is the mean over IoU .5:.05:.95.

    `metric`: "2007" is the 11-point AP of VOC 2007, "area" the area under the envelope of VOC 2010
    and later. A detection takes the object it overlaps most, if by more than the threshold; further
    detections of it are mistakes; difficult objects are ignored. A class without objects is None
    and outside the mean (the devkit divides by zero there).
    """
    found = check_predictions(predictions, dataset)
    truth = objects_of(dataset)
    classes = len(dataset.classes)
    overlap, match = _match(truth, found, classes)
    order = np.argsort(-found.score, kind="stable")  # ties in file order

    ap = np.full((len(IOU_PERCENT), classes), np.nan)
    wanted = np.bincount(truth.category[~truth.ignored], minlength=classes)
    category = found.category[order]
    for c in np.flatnonzero(wanted):
        mine = order[category == c]  # this class's detections, best score first
        for t, percent in enumerate(IOU_PERCENT):
            hit, counted = _judge(overlap[mine], match[mine], truth.ignored, percent / 100.0)
            ap[t, c] = average_precision(hit[counted], int(wanted[c]), metric)

    per_class = {
        name: float(ap[:, c].mean() * 100) if wanted[c] else None
        for c, name in enumerate(dataset.classes)
    }
    defined = ap[:, wanted > 0]
    parts = {"AP": defined, "AP50": defined[0], "AP75": defined[IOU_PERCENT.index(75)]}
    means = {k: float(v.mean() * 100) if v.size else None for k, v in parts.items()}
    return {**means, "metric": metric, "per_class": per_class}


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


def _match(truth: ObjectArrays, found: DetectionArrays, classes: int) -> tuple[Floats, Ints]:
    """Each detection's best overlap with an object of its image and class, and that object.

    The overlap is -inf where there is none.
    """
    mine, theirs = (one.image * classes + one.category for one in (found, truth))
    pairs = same_group(mine, theirs)
    overlap = np.full(len(found.score), -np.inf)
    match = np.full(len(found.score), -1, dtype=np.int64)
    some, first = np.unique(pairs.detection, return_index=True)
    if some.size:
        box = np.concatenate([found.box[:, :2], found.box[:, :2] + found.box[:, 2:]], axis=1)
        iou = _iou(box[pairs.detection], truth.box[pairs.object])
        overlap[some] = np.maximum.reduceat(iou, first)
        # among equals the first object, as argmax takes
        place = np.where(iou == overlap[pairs.detection], pairs.object, len(truth.image))
        match[some] = np.minimum.reduceat(place, first)
    return overlap, match


def _iou(a: Floats, b: Floats) -> Floats:
    """IoU of paired xyxy boxes, (N, 4) and (N, 4) to (N,)."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    inner = np.maximum(sides, 0.0).prod(axis=1)
    first, second = ((box[:, 2:] - box[:, :2]).prod(axis=1) for box in (a, b))
    return inner / (first + second - inner)
