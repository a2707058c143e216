"""Detections of the arms on the same images: reading, matching, the rule that picks images, and
where they are drawn."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from moco_det.data import DetectionDataset
from moco_det.scoring import read_predictions

Frame = tuple[float, float, float, float]  # xyxy

MIN_SCORE = 0.5
MIN_IOU = 0.5
RANDOM_SEED = 0


class Box(NamedTuple):
    """One object, found or true: xyxy in absolute pixels, class name, score (None: the truth).

    `segmentation` is polygons or an RLE as in COCO. An `ignored` truth (crowd, difficult) is
    neither asked for nor held against a detection.
    """

    xyxy: Frame
    category: str
    score: float | None = None
    segmentation: Any = None
    ignored: bool = False


class BoxMatch(NamedTuple):
    """How detections meet the truth: flags aligned with the detections, and the missed count."""

    right: tuple[bool, ...]
    wrong: tuple[bool, ...]
    missed: int


def best_threshold(found: Mapping[str, Sequence[Box]], truth: Mapping[str, Sequence[Box]]) -> float:
    """The lowest score an arm is shown with: that at which its F1 over all images is highest.

    A short schedule leaves even good boxes at low scores, and arms differ in how sure they are: a
    limit that all share would hide what one of them finds. 0.5 where no detection is right.
    """
    objects = sum(not box.ignored for boxes in truth.values() for box in boxes)
    judged: list[tuple[float, bool]] = []
    for key, boxes in found.items():
        met = match(boxes, truth.get(key, []))
        flags = zip(boxes, met.right, met.wrong, strict=True)
        judged += [(box.score or 0.0, right) for box, right, wrong in flags if right or wrong]
    if not any(right for _, right in judged):
        return MIN_SCORE
    judged.sort(key=lambda pair: -pair[0])
    scores, right = np.array(judged).T
    f1 = 2 * np.cumsum(right) / (np.arange(1, len(scores) + 1) + objects)
    f1[:-1][scores[1:] == scores[:-1]] = 0.0  # all of a score are shown or none
    return float(scores[f1.argmax()])


def above(found: Mapping[str, Sequence[Box]], limit: float) -> dict[str, list[Box]]:
    """The boxes of at least a score."""
    return {key: [b for b in boxes if (b.score or 0.0) >= limit] for key, boxes in found.items()}


def read_boxes(path: Path, dataset: DetectionDataset) -> dict[str, list[Box]]:
    """{image id as text: boxes, best first} of a predictions file.

    Raises InputError, as scoring does, where it is missing, damaged or not of this data set.
    """
    names = dict(zip(dataset.category_ids, dataset.classes, strict=True))
    found: dict[str, list[Box]] = {}
    for entry in read_predictions(path, dataset):
        x, y, w, h = (float(value) for value in entry["bbox"])
        name, score, mask = names[entry["category_id"]], entry["score"], entry.get("segmentation")
        box = Box((x, y, x + w, y + h), name, float(score), mask)
        found.setdefault(str(entry["image_id"]), []).append(box)
    for boxes in found.values():
        boxes.sort(key=lambda box: -(box.score or 0.0))
    return found


def match(detections: Sequence[Box], truth: Sequence[Box]) -> BoxMatch:
    """Greedy one-to-one matching in order of score: same class, IoU >= 0.5."""
    overlaps = coco_mask.iou(_xywh(detections), _xywh(truth), [False] * len(truth))
    taken: set[int] = set()
    right, wrong = [], []
    for i, box in enumerate(detections):
        alike = (j for j, other in enumerate(truth) if other.category == box.category)
        near = [j for j in alike if overlaps[i][j] >= MIN_IOU]
        free = [j for j in near if not truth[j].ignored and j not in taken]
        if free:
            taken.add(max(free, key=lambda j: overlaps[i][j]))
        right.append(bool(free))
        wrong.append(not free and not any(truth[j].ignored for j in near))
    missed = sum(not other.ignored for other in truth) - len(taken)
    return BoxMatch(tuple(right), tuple(wrong), missed)


def _xywh(boxes: Sequence[Box]) -> list[list[float]]:
    return [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in (box.xyxy for box in boxes)]


def disagreement(arms: Sequence[Sequence[Box]]) -> int:
    """Detections without a partner in the other arm, summed over the pairs of arms."""
    pairs = combinations(arms, 2)
    return sum(len(a) + len(b) - 2 * sum(match(a, b).right) for a, b in pairs)


def choose_images(
    image_ids: Sequence[str],
    arms: Sequence[Mapping[str, Sequence[Box]]],
    *,
    largest: int,
    at_random: int,
) -> list[tuple[str, str]]:
    """(image id, why it was chosen): random ones, then the largest disagreements.

    Ties go to the earlier id in sorted order; the random ones are drawn with a fixed seed from the
    images without these disagreements, so that the same results give the same pictures. Images on
    which the arms agree wholly are not called a disagreement.
    """
    ordered = sorted(image_ids)
    scores = {i: disagreement([arm.get(i, []) for arm in arms]) for i in ordered}
    ranked = sorted((i for i in ordered if scores[i] > 0), key=lambda i: -scores[i])
    apart = [
        (i, f"largest disagreement, rank {rank + 1} ({scores[i]} unshared detections)")
        for rank, i in enumerate(ranked[:largest])
    ]
    left = [i for i in ordered if i not in dict(apart)]
    drawn = random.Random(RANDOM_SEED).sample(left, min(at_random, len(left)))
    return [(i, "drawn at random") for i in drawn] + apart


def outlines(segmentation: Any, tolerance: float) -> list[np.ndarray]:
    """Closed outlines [points, 2] (x, y in pixels) of polygons or an RLE; holes are outlines too.

    `tolerance` is how far, in pixels, an outline may leave the mask's edge.
    """
    if not segmentation:
        return []
    if isinstance(segmentation, list):
        shapes = [np.asarray(polygon, dtype=np.float32).reshape(-1, 2) for polygon in segmentation]
    else:
        mask = np.ascontiguousarray(coco_mask.decode(segmentation))
        found, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        # A contour runs through pixel centres; continuous coordinates put those at + 0.5.
        shapes = [contour.reshape(-1, 2).astype(np.float32) + 0.5 for contour in found]
    simple = [cv2.approxPolyDP(shape, tolerance, True).reshape(-1, 2) for shape in shapes]
    return [shape for shape in simple if len(shape) >= 3]


def free_spot(
    frame: Frame, size: tuple[float, float], canvas: tuple[float, float], taken: list[Frame]
) -> tuple[float, float] | None:
    """The upper left corner of a label of this (width, height): above the box, inside it at the
    top, inside at the bottom or below; None where none is free. A spot that is given is taken."""
    long, tall = size
    width, height = canvas
    x0, y0, _, y1 = frame
    x = min(max(x0, 0.0), max(width - long, 0.0))
    for y in (y0 - tall, y0, y1 - tall, y1):
        spot = (x, y, x + long, y + tall)
        inside = y >= 0 and y + tall <= height
        if inside and not any(_overlap(spot, other) for other in taken):
            taken.append(spot)
            return x, y
    return None


def _overlap(a: Frame, b: Frame) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
