"""Predictions inside detectron2 and their scores: by this project's metrics, which both engines
share, or by detectron2's own evaluators (TEST.EVALUATOR), in the form of a result row."""

from __future__ import annotations

import itertools
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    inference_on_dataset,
)
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from moco_det.data import DetectionDataset
from moco_det.foundation import stopping
from moco_det.foundation.atomic import replacing
from moco_det.foundation.errors import InputError
from moco_det.plugin.d2_compat import repaired_scorers
from moco_det.results import AP_KEYS
from moco_det.scoring import metric_lines, result_rows, score, write_predictions

logger = logging.getLogger(__name__)

# metadata.evaluator_type -> the evaluator that detectron2's own train_net takes for it
EVALUATORS: dict[str, Callable[[str, str], DatasetEvaluator]] = {
    "coco": lambda name, folder: COCOEvaluator(name, output_dir=folder),
    "lvis": lambda name, folder: LVISEvaluator(name, output_dir=folder),
    "cityscapes_instance": lambda name, folder: CityscapesInstanceEvaluator(name),
    "pascal_voc": lambda name, folder: PascalVOCDetectionEvaluator(name),
}
PREDICTIONS = ("coco_instances_results.json", "lvis_instances_results.json")


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


class StoppableEvaluator(DatasetEvaluator):
    """Another evaluator's work, given up by all processes where one was asked to stop."""

    def __init__(self, evaluator: DatasetEvaluator) -> None:
        self.evaluator = evaluator

    def reset(self) -> None:
        self.evaluator.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        self.evaluator.process(inputs, outputs)

    def evaluate(self) -> Any:
        asked = max(comm.all_gather(stopping.asked()))
        if asked:
            raise stopping.Stopped(asked)
        return self.evaluator.evaluate()


@dataclass(frozen=True)
class UntilStopped:
    """A loader that ends early where this process is asked to stop."""

    loader: DataLoader[Any]

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return itertools.takewhile(lambda batch: not stopping.asked(), self.loader)


def check_scorer(name: str) -> None:
    """InputError where detectron2 has no evaluator of boxes for a data set in its catalog."""
    kind = MetadataCatalog.get(name).get("evaluator_type")
    if kind not in EVALUATORS:
        raise InputError(
            f"data set {name} is of detectron2's kind {kind}; TEST.EVALUATOR detectron2 takes "
            f"{', '.join(EVALUATORS)}"
        )


def evaluate(
    cfg: CfgNode, model: nn.Module, dataset: DetectionDataset, name: str, output: Path
) -> dict[str, Any]:
    """Predict and score the data set registered under ``name``; the metrics of a result row.

    TEST.EVALUATOR says by whose metrics. Empty on later processes. Raises `stopping.Stopped`
    where a signal has asked for it, on every process.
    """
    folder = output / "inference"
    evaluator: DatasetEvaluator = Evaluator(dataset, output, with_masks=cfg.MODEL.MASK_ON)
    by_detectron2 = cfg.TEST.EVALUATOR == "detectron2"
    if by_detectron2:
        evaluator = EVALUATORS[MetadataCatalog.get(name).evaluator_type](name, str(folder))
    loader = UntilStopped(build_detection_test_loader(cfg, name))
    with repaired_scorers():
        metrics = inference_on_dataset(model, loader, StoppableEvaluator(evaluator))
    if by_detectron2 and metrics:
        metrics = to_metrics(metrics)
        for file in filter(Path.is_file, map(folder.joinpath, PREDICTIONS)):
            with file.open("rb") as source, replacing(output / "predictions.json") as target:
                shutil.copyfileobj(source, target)
    for line in metric_lines(metrics):
        logger.info("evaluation: %s", line)
    return dict(metrics)


def to_metrics(found: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """detectron2's results, whose "AP-cat" are classes; what was not measured is null."""
    metrics: dict[str, Any] = {}
    for metric, values in {"bbox": dict.fromkeys(AP_KEYS), **found}.items():
        # undefined is NaN for COCO's scorer and -1, times 100, for that of LVIS
        numbers = {
            key: float(value) if value is not None and value >= 0 else None
            for key, value in values.items()
        }
        classes = {key[3:]: numbers.pop(key) for key in list(numbers) if key.startswith("AP-")}
        metrics[metric] = {**dict.fromkeys(AP_KEYS), **numbers}
        if classes:
            metrics[metric]["per_class"] = classes
    return metrics


def numbers_only(metrics: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Metrics as detectron2 keeps results: floats, NaN where undefined, no classes apart."""
    return {
        metric: {
            key: math.nan if value is None else float(value)
            for key, value in table.items()
            if key != "per_class" and (value is None or isinstance(value, (int, float)))
        }
        for metric, table in metrics.items()
    }
