"""Predictions to average precision: one ruler for every engine."""

from __future__ import annotations

from typing import Any

from moco_det.data.records import DetectionDataset
from moco_det.scoring.coco import score_coco
from moco_det.scoring.predictions import (
    Row,
    check_predictions,
    read_predictions,
    result_rows,
    write_predictions,
)
from moco_det.scoring.voc import score_voc

__all__ = [
    "check_predictions",
    "read_predictions",
    "result_rows",
    "score",
    "score_coco",
    "score_voc",
    "write_predictions",
]


def score(
    dataset: DetectionDataset, predictions: list[Row], *, with_masks: bool
) -> dict[str, dict[str, Any]]:
    """The "metrics" of a result row: "bbox", "segm" if `with_masks`, "voc" for a VOC data set."""
    iou_types = ("bbox", "segm") if with_masks else ("bbox",)
    metrics = score_coco(dataset, predictions, iou_types=iou_types)
    if dataset.ruler == "voc":
        metrics["voc"] = score_voc(dataset, predictions, metric=dataset.voc_metric)
    return metrics
