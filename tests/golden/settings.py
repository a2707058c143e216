"""The configs that the golden files are made with, by either engine."""

from __future__ import annotations

from typing import Any

from fvcore.common.config import CfgNode

from moco_det.config import check, get_cfg, load_yaml, merge, merge_overrides
from tests.standalone.tiny import REPO

BASE = REPO / "configs" / "base" / "RCNN_FPN.yaml"
CPU = [
    "MODEL.DEVICE",
    "cpu",
    "MODEL.RESNETS.NORM",
    "BN",
    "MODEL.FPN.NORM",
    "BN",
    "DATASETS.TRAIN",
    "('train',)",
    "DATASETS.TEST",
    "('test',)",
]
R18 = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
MASKS = ["MODEL.MASK_ON", "True"]
# state_dict_names.json: architectures at their full width
ARCHITECTURES = {
    "R18_FPN": [*R18],
    "R50_FPN_masks": ["MODEL.RESNETS.DEPTH", "50", *MASKS],
}
SMALL = [
    *("MODEL.FPN.OUT_CHANNELS", "32"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32], [64], [128]]"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "60"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "100"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "40"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "3"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "64"),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", "2"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "32"),
    *("TEST.DETECTIONS_PER_IMAGE", "20"),
]
# parity.npz: samples so large that everything is in them, so that no random number is drawn
# whose generator another torch may have changed
PARITY = [
    *R18,
    *MASKS,
    *SMALL,
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "4096"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "1024"),
    *("MODEL.ROI_HEADS.POSITIVE_FRACTION", "0.5"),
]


def our_config(changes: list[str]) -> CfgNode:
    """The standalone engine's config."""
    cfg = get_cfg()
    merge(cfg, load_yaml(BASE), source=BASE.name)
    merge_overrides(cfg, [*CPU, *changes])
    check(cfg)
    return cfg


def base_tree() -> dict[str, Any]:
    """The base yaml, for an engine that merges it by itself."""
    return load_yaml(BASE)
