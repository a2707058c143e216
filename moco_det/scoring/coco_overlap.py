"""Overlap of the pairs that COCO's matching looks at: boxes here, masks by pycocotools' RLEs."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pycocotools.mask
from tqdm import tqdm

from moco_det.data.masks import compressed
from moco_det.data.records import DetectionDataset
from moco_det.scoring.arrays import Bools, Floats, Ints
from moco_det.scoring.coco_matching import Pairs

Rle = dict[str, Any]

# pycocotools up to 2.0.11 keeps the length of the list it is asked for areas of in a byte
LONGEST_LIST = 255


def box_overlap(pairs: Pairs, found: Floats, truth: Floats, crowd: Bools) -> Pairs:
    """The pairs with their IoU; boxes xywh. A crowd's is the share of the detection inside it.

    The operations are those of COCO's mask API in its order, so the numbers are the same bits.
    """
    d, g = found[pairs.detection], truth[pairs.object]
    low, high = np.maximum(d[:, :2], g[:, :2]), np.minimum(d[:, 2:] + d[:, :2], g[:, 2:] + g[:, :2])
    sides = high - low
    inner = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    area = d[:, 2] * d[:, 3]
    union = np.where(crowd[pairs.object], area, area + g[:, 2] * g[:, 3] - inner)
    iou = np.divide(inner, union, out=np.zeros_like(inner), where=inner > 0)
    return pairs._replace(iou=iou)


def mask_overlap(
    pairs: Pairs, found: list[Rle], truth: list[Rle], *, crowd: Bools, group: Ints, lowest: float
) -> Pairs:
    """The pairs whose masks can overlap by `lowest`, with their IoU.

    Comparing masks takes the most time of scoring. Areas alone, and then the masks' boxes, bound
    their intersection, and only pairs that may reach `lowest` by those bounds are compared.
    `group` (D,) is the detections' image and class.
    """
    areas = mask_areas(found), mask_areas(truth)
    for by_boxes in (False, True):
        mine, its = areas[0][pairs.detection], areas[1][pairs.object]
        inner = np.minimum(mine, its)
        if by_boxes:
            inner = np.minimum(inner, _shared(pairs, found, truth))
        union = np.where(crowd[pairs.object], mine, mine + its - inner)
        pairs = pairs.at(inner >= (lowest - 1e-9) * union)
    iou = np.zeros(len(pairs.iou))
    edges = np.flatnonzero(np.diff(group[pairs.detection], prepend=-1, append=-1)).tolist()
    ranges = list(itertools.pairwise(edges))
    for low, high in tqdm(ranges, desc="comparing masks", delay=2, mininterval=1):
        rows, row = np.unique(pairs.detection[low:high], return_inverse=True)
        columns, column = np.unique(pairs.object[low:high], return_inverse=True)
        masks, theirs = [found[i] for i in rows], [truth[i] for i in columns]
        table = pycocotools.mask.iou(masks, theirs, crowd[columns].tolist())
        iou[low:high] = table[row, column]
    return pairs._replace(iou=iou)


def _shared(pairs: Pairs, found: list[Rle], truth: list[Rle]) -> Floats:
    """Pixels (P,) that the boxes around the masks of each pair share."""
    corners = []
    for rles, place in ((found, pairs.detection), (truth, pairs.object)):
        some, which = np.unique(place, return_inverse=True)
        box = pycocotools.mask.toBbox([rles[i] for i in some]) if len(some) else np.zeros((0, 4))
        corners.append(np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1)[which])
    d, g = corners
    sides = np.minimum(d[:, 2:], g[:, 2:]) - np.maximum(d[:, :2], g[:, :2])
    return np.maximum(sides, 0.0).prod(axis=1)


def mask_areas(rles: list[Rle]) -> Floats:
    """Pixels of each mask (N,)."""
    starts = range(0, len(rles), LONGEST_LIST)
    parts = (pycocotools.mask.area(rles[start : start + LONGEST_LIST]) for start in starts)
    return np.concatenate([np.zeros(0), *parts])


def truth_rles(dataset: DetectionDataset) -> list[Rle]:
    """Each annotation's mask as a compressed RLE, in reading order; a crowd or an object that has
    only a box is that box's rectangle."""
    rles = []
    for record in dataset.records:
        for a in record.annotations:
            x0, y0, x1, y1 = a.bbox
            shape = a.segmentation or [[x0, y0, x1, y0, x1, y1, x0, y1]]
            rles.append(compressed(shape, record.height, record.width))
    return rles
