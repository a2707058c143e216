"""COCO average precision of boxes and masks: pycocotools' numbers, computed for all images at once.

The definitions are those of pycocotools' COCOeval, to the last bit on x86 in the tests; only the
order of the work differs. It looks at one image, class, area range and threshold at a time, here
one step of the greedy matching is taken for all of them (`coco_matching`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from moco_det.data.records import DetectionDataset
from moco_det.foundation.errors import InputError
from moco_det.scoring.arrays import Bools, DetectionArrays, Floats, Ints, ObjectArrays, objects_of
from moco_det.scoring.coco_matching import Matches, match, place_in_group, same_group
from moco_det.scoring.coco_overlap import box_overlap, mask_areas, mask_overlap, truth_rles
from moco_det.scoring.predictions import Row, check_predictions

Metrics = dict[str, Any]

# COCOeval's parameters: ten IoU thresholds, 101 points of recall, areas in square pixels
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}


def score_coco(
    dataset: DetectionDataset,
    predictions: list[Row],
    *,
    iou_types: Sequence[Literal["bbox", "segm"]] = ("bbox", "segm"),
    max_dets: int = 100,
) -> dict[str, Metrics]:
    """{"bbox": metrics, "segm": metrics}: the twelve COCO numbers and per_class AP, in percent.

    Keys AP AP50 AP75 APs APm APl AR1 AR10 AR<max_dets> ARs ARm ARl per_class; None where the data
    set has no object that would define the number. No predictions at all score 0. Masks are sized
    by their own area, as detectron2 does. Difficult objects, and for masks those whose mask is not
    known, are neither asked for nor counted as mistakes.
    """
    found = check_predictions(predictions, dataset)
    if "segm" in iou_types:
        if not dataset.has_masks:
            raise InputError(f"data set {dataset.name} has no masks: score its boxes only")
        for position, row in enumerate(predictions):
            if not row.get("segmentation"):
                raise InputError(f"predictions: row {position} has no mask: score boxes only")
    # The detections that count, by image and class, best score first; ties keep their order.
    order = np.lexsort((-found.score, found.category, found.image))
    group = found.image * len(dataset.classes) + found.category
    rank = place_in_group(group[order])
    order, rank = order[rank < max_dets], rank[rank < max_dets]
    found, truth = found.at(order), objects_of(dataset)
    masks = [predictions[i].get("segmentation") for i in order]
    return {kind: _score(dataset, found, rank, masks, truth, kind, max_dets) for kind in iou_types}


def _score(
    dataset: DetectionDataset,
    found: DetectionArrays,
    rank: Ints,
    masks: list[Any],
    truth: ObjectArrays,
    iou_type: str,
    max_dets: int,
) -> Metrics:
    """One kind's numbers; `rank` (from 0) is each detection's place within image and class."""
    classes, lowest, ignored = len(dataset.classes), float(THRESHOLDS[0]), truth.ignored
    group = found.image * classes + found.category
    pairs = same_group(group, truth.image * classes + truth.category)
    if iou_type == "segm":
        areas, there = mask_areas(masks), truth_rles(dataset)
        ignored = ignored | truth.maskless
        pairs = mask_overlap(pairs, masks, there, crowd=truth.crowd, group=group, lowest=lowest)
    else:
        areas = found.box[:, 2] * found.box[:, 3]
        xywh = np.concatenate([truth.box[:, :2], truth.box[:, 2:] - truth.box[:, :2]], axis=1)
        pairs = box_overlap(pairs, found.box, xywh, truth.crowd)
    counted = ~ignored & _within(truth.area)  # (A, N)
    near = pairs.at(pairs.iou >= lowest)
    matches = match(near, group, rank, wanted=counted, crowd=truth.crowd, thresholds=THRESHOLDS)
    # COCOeval orders classes by category id, which need not be our order
    column = np.empty(classes, dtype=np.int64)
    column[np.argsort(dataset.category_ids)] = np.arange(classes)
    of_truth, of_found = column[truth.category], column[found.category]
    wanted = np.stack([np.bincount(of_truth[some], minlength=classes) for some in counted])  # (A,K)

    precision = _precision(found.score, of_found, wanted, _within(areas), matches)
    limits = (1, 10, max_dets)
    recall = _recall(of_found, rank, wanted, matches, limits)
    tenths = list(np.round(THRESHOLDS, 2))
    sizes = [(place, suffix) for place, suffix in enumerate(AREAS) if suffix]
    parts = {
        "AP": precision[0],
        "AP50": precision[0, tenths.index(0.5)],
        "AP75": precision[0, tenths.index(0.75)],
        **{f"AP{suffix}": precision[place] for place, suffix in sizes},
        **{f"AR{limit}": recall[slot, 0] for slot, limit in enumerate(limits)},
        **{f"AR{suffix}": recall[-1, place] for place, suffix in sizes},
    }
    classed = zip(dataset.classes, column, strict=True)
    per_class = {name: _mean(precision[0, :, :, k]) for name, k in classed}
    return {**{name: _mean(values) for name, values in parts.items()}, "per_class": per_class}


def _within(areas: Floats) -> Bools:
    """(A, N): whether an area lies in each of the ranges, ends included."""
    return np.stack([(areas >= low) & (areas <= high) for low, high in AREAS.values()])


def _precision(
    score: Floats, category: Ints, wanted: Ints, within: Bools, matches: Matches
) -> Floats:
    """Interpolated precision (A, T, R, K) at the points of recall; -1 where no object is wanted.

    `score`, `category` (D,); `wanted` (A, K) objects; `within` (A, D): a detection that takes
    nothing and whose own area is outside the range is not counted.
    """
    # stable: equal scores keep the order of images and, within one, of ranks
    order = np.lexsort((-score, category))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    place = place[matches.detection]
    by_place = np.argsort(place)
    place = place[by_place]
    of_match = category[matches.detection][by_place]
    classes = wanted.shape[1]
    opens = np.searchsorted(category[order], np.arange(classes))
    precision = np.full((*matches.right.shape[:2], len(RECALLS), classes), -1.0)
    for a, t in np.ndindex(*matches.right.shape[:2]):
        taken, right = matches.taken[a, t, by_place], matches.right[a, t, by_place]
        counted = within[a, order]
        counted[place] = np.where(taken, right, counted[place])
        sofar = np.concatenate(([0], np.cumsum(counted)))
        # precision rises only at a right detection, so only those can be its envelope's corners
        at, of = place[right], of_match[right]
        total = sofar[at + 1] - sofar[opens[of]]
        edges = np.searchsorted(of, np.arange(classes + 1))
        for k in np.flatnonzero(wanted[a]):
            mine = slice(edges[k], edges[k + 1])
            precision[a, t, :, k] = _interpolated(total[mine], int(wanted[a, k]))
    return precision


def _interpolated(total: Ints, wanted: int) -> Floats:
    """Precision at the points of recall; total[i]: detections counted up to the i-th right one."""
    right = np.arange(1.0, len(total) + 1.0)
    envelope = np.maximum.accumulate((right / (total + np.spacing(1)))[::-1])[::-1]
    first = np.searchsorted(right / wanted, RECALLS, side="left")
    return np.append(envelope, 0.0)[first]


def _recall(
    category: Ints, rank: Ints, wanted: Ints, matches: Matches, limits: Sequence[int]
) -> Floats:
    """Final recall (M, A, T, K) with the best `limits` detections of an image and class."""
    of, rank = category[matches.detection], rank[matches.detection]
    areas, levels = matches.right.shape[:2]
    classes = wanted.shape[1]
    recall = np.full((len(limits), areas, levels, classes), -1.0)
    for m, limit in enumerate(limits):
        for a, t in np.ndindex(areas, levels):
            hits = np.bincount(of[matches.right[a, t] & (rank < limit)], minlength=classes)
            some = wanted[a] > 0
            recall[m, a, t, some] = hits[some] / wanted[a, some]
    return recall


def _mean(values: Floats) -> float | None:
    defined = values[values > -1]
    return float(defined.mean() * 100) if defined.size else None
