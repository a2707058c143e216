"""The scorer of this project as an evaluator of detectron2: one ruler for both engines."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from torch import nn

from moco_det.data import DetectionDataset
from moco_det.plugin.their_scorer import score_by_detectron2
from moco_det.scoring import metric_lines, result_rows, score, write_predictions

logger = logging.getLogger(__name__)


class Evaluator(DatasetEvaluator):
    """Collects COCO result rows in the data set's own ids, writes predictions.json, scores it."""

    def __init__(self, dataset: DetectionDataset, output: Path, *, with_masks: bool) -> None:
        self.dataset = dataset
        self.output = output
        self.with_masks = with_masks
        self.rows: list[dict[str, Any]] = []

    def reset(self) -> None:
        self.rows = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take the detections of a batch, which detectron2 gives in the original image's pixels."""
        for image, output in zip(inputs, outputs, strict=True):
            found = output["instances"].to("cpu")
            masks = found.pred_masks.numpy() if self.with_masks else None
            self.rows += result_rows(
                self.dataset,
                image["image_id"],
                found.pred_boxes.tensor.numpy(),
                found.scores.numpy(),
                found.pred_classes.numpy(),
                masks,
            )

    def evaluate(self) -> dict[str, Any]:
        """The metrics of a result row on the first process; empty on the others."""
        parts = comm.gather(self.rows, dst=0)
        if not comm.is_main_process():
            return {}
        rows = [row for part in parts for row in part]
        write_predictions(self.output / "predictions.json", rows)
        return score(self.dataset, rows, with_masks=self.with_masks)


def evaluate(
    cfg: CfgNode, model: nn.Module, dataset: DetectionDataset, name: str, output: Path
) -> dict[str, Any]:
    """Predict and score the data set registered under ``name``; the metrics of a result row.

    TEST.EVALUATOR says by whose ruler.
    """
    metrics: dict[str, Any]
    if cfg.TEST.EVALUATOR == "detectron2":
        metrics = score_by_detectron2(cfg, model, name, output)
    else:
        evaluator = Evaluator(dataset, output, with_masks=cfg.MODEL.MASK_ON)
        metrics = inference_on_dataset(model, build_detection_test_loader(cfg, name), evaluator)
    for line in metric_lines(metrics):
        logger.info("evaluation: %s", line)
    return metrics


def numbers_only(metrics: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Metrics as detectron2 keeps results: floats, NaN where undefined, no classes apart."""
    return {
        ruler: {
            key: math.nan if value is None else float(value)
            for key, value in table.items()
            if key != "per_class" and (value is None or isinstance(value, (int, float)))
        }
        for ruler, table in metrics.items()
    }
