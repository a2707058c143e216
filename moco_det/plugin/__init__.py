"""This project inside detectron2, by detectron2's public doors.

from detectron2.config import get_cfg
from moco_det.plugin import add_moco_det_config, register_dataset

cfg = get_cfg()
add_moco_det_config(cfg)
cfg.merge_from_file("configs/quick/R18_FPN.yaml")
register_dataset("voc://VOCdevkit/VOC2007?split=test")
"""

from __future__ import annotations

# First, so that without detectron2 the import ends in its one line (sorted it is anyway).
from moco_det.plugin.available import MissingDetectron2
from moco_det.plugin.config import add_moco_det_config, load_config
from moco_det.plugin.datasets import register_dataset
from moco_det.plugin.evaluator import Evaluator
from moco_det.plugin.modeling import register_parts
from moco_det.plugin.trainer import Trainer
from moco_det.weights.loading import load_weights

register_parts()

__all__ = [
    "Evaluator",
    "MissingDetectron2",
    "Trainer",
    "add_moco_det_config",
    "load_config",
    "load_weights",
    "register_dataset",
]
