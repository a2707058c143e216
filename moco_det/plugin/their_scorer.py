"""detectron2's own evaluators, taken by TEST.EVALUATOR detectron2, in the form of a result row."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
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
from torch import nn

from moco_det.foundation.errors import InputError
from moco_det.plugin.their_packages import (
    cityscapes_without_files,
    numpy_as_their_scorers_know_it,
)
from moco_det.results import AP_KEYS

# metadata.evaluator_type -> the evaluator that detectron2's own train_net takes for it
EVALUATORS: dict[str, Callable[[str, str], DatasetEvaluator]] = {
    "coco": lambda name, folder: COCOEvaluator(name, output_dir=folder),
    "lvis": lambda name, folder: LVISEvaluator(name, output_dir=folder),
    "cityscapes_instance": lambda name, folder: CityscapesInstanceEvaluator(name),
    "pascal_voc": lambda name, folder: PascalVOCDetectionEvaluator(name),
}
PREDICTIONS = ("coco_instances_results.json", "lvis_instances_results.json")


def check_scorer(name: str) -> None:
    """InputError where detectron2 has no evaluator of boxes for a data set in its catalog."""
    kind = MetadataCatalog.get(name).get("evaluator_type")
    if kind not in EVALUATORS:
        raise InputError(
            f"data set {name} is of detectron2's kind {kind}; TEST.EVALUATOR detectron2 takes "
            f"{', '.join(EVALUATORS)}"
        )


def score_by_detectron2(cfg: CfgNode, model: nn.Module, name: str, output: Path) -> dict[str, Any]:
    """Predict and score by detectron2; the metrics of a result row, empty on later processes."""
    folder = output / "inference"
    kind = MetadataCatalog.get(name).evaluator_type
    evaluator = EVALUATORS[kind](name, str(folder))
    with numpy_as_their_scorers_know_it(), cityscapes_without_files():
        found = inference_on_dataset(model, build_detection_test_loader(cfg, name), evaluator)
    if not found:
        return {}
    for file in PREDICTIONS:
        if (folder / file).is_file():
            shutil.copyfile(folder / file, output / ".predictions.json")
            os.replace(output / ".predictions.json", output / "predictions.json")
    return to_metrics(found)


def to_metrics(found: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """detectron2's results, whose "AP-cat" are classes; what was not measured is null."""
    tables = {"bbox": dict.fromkeys(AP_KEYS, None), **found}
    metrics: dict[str, Any] = {}
    for ruler, values in tables.items():
        table: dict[str, Any] = {key: None for key in AP_KEYS}
        classes = {}
        for key, value in values.items():
            # undefined is NaN for COCO's scorer and -1, times 100, for that of LVIS
            number = float(value) if value is not None and value >= 0 else None
            if key.startswith("AP-"):
                classes[key.removeprefix("AP-")] = number
            else:
                table[key] = number
        metrics[ruler] = {**table, "per_class": classes} if classes else table
    return metrics
