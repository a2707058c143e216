"""The configs that the golden files are made with, by either engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fvcore.common.config import CfgNode

from moco_det.settings.config import check, get_cfg, load_yaml, merge, merge_overrides
from tests.standalone.tiny import REPO

BASES = REPO / "configs" / "base"
CPU = [
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.RESNETS.NORM", "BN"),
    *("MODEL.FPN.NORM", "BN"),
    *("MODEL.DILATED_C5.NORM", "BN"),
    *("DATASETS.TRAIN", "('train',)"),
    *("DATASETS.TEST", "('test',)"),
]
R18 = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
NARROW = ["MODEL.RESNETS.STEM_OUT_CHANNELS", "32", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"]
MASKS = ["MODEL.MASK_ON", "True"]
R50 = ["MODEL.RESNETS.DEPTH", "50"]


@dataclass(frozen=True)
class Settings:
    """A base yaml and what is changed in it."""

    base: str
    changes: tuple[str, ...]

    def __init__(self, base: str, *changes: Sequence[str]) -> None:
        object.__setattr__(self, "base", base)
        object.__setattr__(self, "changes", tuple(word for part in changes for word in part))

    def but(self, *keys: str) -> Settings:
        """The same with more changes."""
        return Settings(self.base, self.changes, keys)


# state_dict_names.json: architectures at their full width
ARCHITECTURES = {
    "R18_FPN": Settings("RCNN_FPN", R18),
    "R50_FPN_masks": Settings("RCNN_FPN", R50, MASKS),
    "R50_C4_masks": Settings("RCNN_C4", R50, MASKS),
    "R50_C4_no_extra_norm": Settings("RCNN_C4", R50, ["MODEL.ROI_HEADS.NAME", "Res5ROIHeads"]),
    "R50_DC5": Settings("RCNN_DC5", R50),
}
SMALL = [
    *("MODEL.FPN.OUT_CHANNELS", "32"),
    *("MODEL.DILATED_C5.OUT_CHANNELS", "64"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "60"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "100"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "40"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "3"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "64"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "32"),
    *("TEST.DETECTIONS_PER_IMAGE", "20"),
]
SMALL_FPN = [
    *SMALL,
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32], [64], [128]]"),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", "2"),
]
# one map of stride 16
SMALL_C4 = [
    *SMALL,
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[8, 16, 32, 64]]"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.01"),
]
# parity.npz: samples so large that everything is in them, so that no random number is drawn
# whose generator another torch may have changed
EVERYTHING = [
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "4096"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "1024"),
    *("MODEL.ROI_HEADS.POSITIVE_FRACTION", "0.5"),
]
PARITY = {
    "fpn": Settings("RCNN_FPN", R18, MASKS, SMALL_FPN, EVERYTHING),
    "c4": Settings("RCNN_C4", R50, MASKS, SMALL_C4, EVERYTHING),
    "dc5": Settings("RCNN_DC5", R50, SMALL_C4, EVERYTHING),
}


def our_config(settings: Settings) -> CfgNode:
    """The standalone engine's config."""
    cfg = get_cfg()
    merge(cfg, base_tree(settings), source=settings.base)
    merge_overrides(cfg, [*CPU, *settings.changes])
    check(cfg)
    return cfg


def base_tree(settings: Settings) -> dict[str, Any]:
    """The base yaml, for an engine that merges it by itself."""
    return load_yaml(BASES / f"{settings.base}.yaml")
