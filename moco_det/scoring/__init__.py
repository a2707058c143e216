"""Predictions to average precision: the same for every engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

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
    "metric_lines",
    "read_predictions",
    "result_rows",
    "score",
    "score_coco",
    "score_voc",
    "write_predictions",
]


def metric_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The "metrics" of a result row as text, one line per metric."""
    lines = []
    for name, table in metrics.items():
        cells = [
            f"{key} {value:.2f}" if value is not None else f"{key} -"
            for key, value in table.items()
            if key != "per_class" and (value is None or isinstance(value, (int, float)))
        ]
        lines.append(f"{name}: " + "  ".join(cells))
    return lines


def score(
    dataset: DetectionDataset, predictions: list[Row], *, with_masks: bool
) -> dict[str, dict[str, Any]]:
    """The "metrics" of a result row: "bbox", "segm" if `with_masks`, "voc" for a VOC data set."""
    kinds: tuple[Literal["bbox", "segm"], ...] = ("bbox", "segm") if with_masks else ("bbox",)
    metrics = score_coco(dataset, predictions, iou_types=kinds)
    if dataset.layout == "voc":
        metrics["voc"] = score_voc(dataset, predictions, metric=dataset.voc_metric)
    return metrics
