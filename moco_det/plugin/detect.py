"""A trained detector inside detectron2, opened for images without annotations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.data import build_detection_test_loader
from tqdm import tqdm

from moco_det.data import DetectionDataset
from moco_det.foundation.errors import InputError
from moco_det.plugin.config import load_config
from moco_det.plugin.datasets import register
from moco_det.plugin.evaluator import Evaluator
from moco_det.plugin.trainer import build_detector
from moco_det.runs.predict import Detector
from moco_det.weights.loading import load_weights


def open_detector(config_file: str | Path, overrides: Sequence[str]) -> Detector:
    """The detector of a config with the checkpoint that MODEL.WEIGHTS names.

    InputError where the weights are not those of the whole detector.
    """
    cfg = load_config(config_file, overrides)
    model = build_detector(cfg)
    loaded = load_weights(cfg, model)
    if loaded.new_layers:
        raise InputError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS!r} holds no whole detector: name the checkpoint of "
            "a finished run, model_final.pth"
        )
    model.eval()

    def detect(dataset: DetectionDataset) -> list[dict[str, Any]]:
        name = "images to detect on"
        register(name, dataset)
        found = Evaluator(dataset, Path(), with_masks=cfg.MODEL.MASK_ON)
        loader = build_detection_test_loader(cfg, name)
        with torch.no_grad():
            for inputs in tqdm(loader, desc="detecting", unit="image", mininterval=1):
                found.process(inputs, model(inputs))
        return found.rows

    return Detector(
        detect,
        cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        Path(cfg.MODEL.WEIGHTS),
        tuple(cfg.DATASETS.TRAIN),
        "float32",  # mixed precision is for training in detectron2
    )
