"""The smallest detector and the smallest data set that go through the real path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pycocotools.mask
from fvcore.common.config import CfgNode

from moco_det.data import coco_uri
from moco_det.data.scenes import ScenesPaths, write_scenes
from moco_det.runs.run import run as run_on
from moco_det.settings.config import load_config
from moco_det.settings.engine import RunOptions
from moco_det.standalone import StandaloneEngine

REPO = Path(__file__).resolve().parents[2]
CONFIG = REPO / "configs" / "quick" / "R18_FPN.yaml"
CLASSES = 8  # of the painted scenes

KEYS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.FPN.NORM": "BN",
    "MODEL.FPN.OUT_CHANNELS": "32",
    "MODEL.ANCHOR_GENERATOR.SIZES": "[[8], [16], [32], [64], [128]]",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": "32",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": "50",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "50",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": "30",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "20",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "16",
    "MODEL.ROI_HEADS.NUM_CLASSES": str(CLASSES),
    "MODEL.ROI_BOX_HEAD.FC_DIM": "32",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": "1",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "32",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MAX_SIZE_TRAIN": "96",
    "INPUT.MIN_SIZE_TEST": "64",
    "INPUT.MAX_SIZE_TEST": "96",
    "DATASETS.TRAIN": "('none',)",
    "DATASETS.TEST": "('none',)",
    "SOLVER.AMP.ENABLED": "False",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.BASE_LR": "0.005",
    "SOLVER.MAX_ITER": "4",
    "SOLVER.STEPS": "(3,)",
    "SOLVER.WARMUP_ITERS": "2",
    "SOLVER.CHECKPOINT_PERIOD": "2",
    "TEST.DETECTIONS_PER_IMAGE": "5",
    "TEST.PRECISE_BN.NUM_ITER": "1",
    "SEED": "3",
}


def overrides(changes: dict[str, str] | None = None) -> list[str]:
    """The tiny settings, some of them changed, as KEY VALUE KEY VALUE ..."""
    return [text for pair in (KEYS | (changes or {})).items() for text in pair]


def tiny_config(changes: dict[str, str] | None = None) -> CfgNode:
    return load_config(CONFIG, overrides(changes))


def scenes(folder: Path) -> ScenesPaths:
    """Twelve labelled images of 64 pixels, eight to train on and four to test."""
    return write_scenes(
        folder / "scenes", seed=1, unlabelled=0, train=8, test=4, size=64, progress=False
    )


def coded_scenes(paths: ScenesPaths, folder: Path) -> str:
    """The training scenes with every second mask as run-lengths."""
    content = json.loads(paths.train_json.read_text())
    for row in content["annotations"][::2]:
        parts = pycocotools.mask.frPyObjects(row["segmentation"], 64, 64)
        mask = pycocotools.mask.merge(parts)
        row["segmentation"] = {**mask, "counts": mask["counts"].decode()}
    (folder / "coded.json").write_text(json.dumps(content))
    return coco_uri(folder / "coded.json", paths.train_images)


def on_scenes(paths: ScenesPaths, output: Path, changes: dict[str, str] | None = None) -> CfgNode:
    """The tiny detector on these scenes, with its folder."""
    return tiny_config(
        {
            "DATASETS.TRAIN": repr((paths.train,)),
            "DATASETS.TEST": repr((paths.test,)),
            "OUTPUT_DIR": repr(str(output)),
            **(changes or {}),
        }
    )


def run(cfg: CfgNode, options: RunOptions) -> dict[str, Any]:
    """A run of the standalone engine."""
    return run_on(cfg, options, StandaloneEngine())
