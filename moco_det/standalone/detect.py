"""A trained detector of this engine, opened for images without annotations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moco_det.data import DetectionDataset
from moco_det.foundation.errors import InputError
from moco_det.foundation.precision import choose_precision
from moco_det.runs.predict import Detector
from moco_det.settings.config import load_config
from moco_det.standalone.build import build_detector, build_mapper
from moco_det.standalone.evaluate import predict
from moco_det.standalone.run import check_device
from moco_det.weights.loading import load_weights


def open_detector(config_file: str | Path, overrides: Sequence[str]) -> Detector:
    """The detector of a config with the checkpoint that MODEL.WEIGHTS names.

    InputError where the weights are not those of the whole detector.
    """
    cfg = load_config(config_file, overrides)
    device = check_device(cfg.MODEL.DEVICE)
    precision = choose_precision(amp=cfg.SOLVER.AMP.ENABLED, device=device)
    model = build_detector(cfg)
    loaded = load_weights(cfg, model)
    if loaded.new_layers:
        raise InputError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS!r} holds no whole detector: name the checkpoint of "
            "a finished run, model_final.pth"
        )
    model.to(cfg.MODEL.DEVICE)
    mapper = build_mapper(cfg, train=False)

    def detect(dataset: DetectionDataset) -> list[dict[str, Any]]:
        return predict(
            model,
            dataset,
            mapper,
            precision,
            workers=cfg.DATALOADER.NUM_WORKERS,
            description="detecting",
        )

    return Detector(
        detect,
        cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        Path(cfg.MODEL.WEIGHTS),
        tuple(cfg.DATASETS.TRAIN),
        precision.name,
    )
