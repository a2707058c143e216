"""COCO average precision of boxes and masks, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from moco_det.data.ground_truth import coco_ground_truth
from moco_det.data.records import DetectionDataset
from moco_det.errors import InputError
from moco_det.scoring.predictions import Row, check_predictions

Metrics = dict[str, Any]

# Some seconds of work; below that a bar only flickers.
_STEPS_WORTH_A_BAR = 50_000

# COCOeval's area ranges, in its order
_AREAS = {"": 0, "s": 1, "m": 2, "l": 3}


def score_coco(
    dataset: DetectionDataset,
    predictions: list[Row],
    *,
    iou_types: Sequence[str] = ("bbox", "segm"),
    max_dets: int = 100,
) -> dict[str, Metrics]:
    """{"bbox": metrics, "segm": metrics}: the twelve COCO numbers and per_class AP, in percent.

    Keys AP AP50 AP75 APs APm APl AR1 AR10 AR<max_dets> ARs ARm ARl per_class; None where the data
    set has no object that would define the number. No predictions at all score 0. Masks are sized
    by their own area, as detectron2 does. Difficult objects are neither asked for nor counted as
    mistakes.
    """
    check_predictions(predictions, dataset)
    for iou_type in iou_types:
        if iou_type not in ("bbox", "segm"):
            raise InputError(f"IoU type {iou_type!r} is not known: use bbox or segm")
    if max_dets < 10:
        raise InputError(f"max_dets is {max_dets}: COCO's recalls need at least 10")
    if "segm" in iou_types:
        if not dataset.has_masks:
            raise InputError(f"data set {dataset.name} has no masks: score its boxes only")
        for position, row in enumerate(predictions):
            if not row.get("segmentation"):
                raise InputError(f"predictions: row {position} has no mask: score boxes only")
    return {iou_type: _evaluate(dataset, predictions, iou_type, max_dets) for iou_type in iou_types}


class _Ruler(COCOeval):  # type: ignore[misc]
    """COCOeval that honours "ignore", which the original overwrites with iscrowd, and that shows
    how far it is."""

    def evaluate(self) -> None:
        p = self.params
        steps = len(p.imgIds) * len(p.catIds) * len(p.areaRng)
        with tqdm(
            total=steps,
            desc=f"scoring {p.iouType}",
            mininterval=1,
            disable=steps < _STEPS_WORTH_A_BAR,
        ) as self._bar:
            super().evaluate()

    def evaluateImg(self, *where: Any) -> Any:
        self._bar.update()
        return super().evaluateImg(*where)

    def _prepare(self) -> None:
        super()._prepare()
        for objects in self._gts.values():
            for item in objects:
                item["ignore"] = int(bool(item["iscrowd"]) or bool(item["difficult"]))


def _evaluate(
    dataset: DetectionDataset, predictions: list[Row], iou_type: str, max_dets: int
) -> Metrics:
    # COCOeval sorts image ids; positions keep its order ours and let ids be of any type
    position = {record.image_id: i for i, record in enumerate(dataset.records)}
    truth = coco_ground_truth(dataset)
    for image in truth["images"]:
        image["id"] = position[image["id"]]
    for row in truth["annotations"]:
        row["image_id"] = position[row["image_id"]]
        row["difficult"] = row["ignore"]
        if iou_type == "segm" and "segmentation" not in row:  # a crowd given by its box only
            x, y, w, h = row["bbox"]
            row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    found = [
        _detection(row, number, position[row["image_id"]], iou_type)
        for number, row in enumerate(predictions, start=1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        ruler = _Ruler(_index(truth), _index({**truth, "annotations": found}), iouType=iou_type)
        ruler.params.maxDets = [1, 10, max_dets]
        ruler.evaluate()
        ruler.accumulate()
    return _numbers(ruler, dataset, max_dets)


def _index(content: dict[str, Any]) -> COCO:
    api = COCO()
    api.dataset = content
    api.createIndex()
    return api


def _detection(row: Row, number: int, image: int, iou_type: str) -> Row:
    detection = {
        "id": number,
        "image_id": image,
        "category_id": row["category_id"],
        "score": row["score"],
        "bbox": list(row["bbox"]),
        "area": row["bbox"][2] * row["bbox"][3],
        "iscrowd": 0,
    }
    if iou_type == "segm":
        detection["segmentation"] = row["segmentation"]
        detection["area"] = float(pycocotools.mask.area(row["segmentation"]))
    return detection


def _numbers(ruler: COCOeval, dataset: DetectionDataset, max_dets: int) -> Metrics:
    precision = ruler.eval["precision"]  # (IoU, recall, class, area, max_dets); -1: undefined
    recall = ruler.eval["recall"]  # (IoU, class, area, max_dets)
    ious = list(np.round(ruler.params.iouThrs, 2))
    metrics: Metrics = {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[ious.index(0.5), :, :, 0, -1]),
        "AP75": _mean(precision[ious.index(0.75), :, :, 0, -1]),
    }
    for suffix, area in _AREAS.items():
        if suffix:
            metrics[f"AP{suffix}"] = _mean(precision[:, :, :, area, -1])
    for slot, count in enumerate((1, 10, max_dets)):
        metrics[f"AR{count}"] = _mean(recall[:, :, 0, slot])
    for suffix, area in _AREAS.items():
        if suffix:
            metrics[f"AR{suffix}"] = _mean(recall[:, :, area, -1])
    # COCOeval orders classes by category id, which need not be our order
    column = {category: k for k, category in enumerate(ruler.params.catIds)}
    metrics["per_class"] = {
        name: _mean(precision[:, :, column[category], 0, -1])
        for name, category in zip(dataset.classes, dataset.category_ids, strict=True)
    }
    return metrics


def _mean(values: np.ndarray) -> float | None:
    defined = values[values > -1]
    return float(defined.mean() * 100) if defined.size else None
