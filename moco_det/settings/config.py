"""Detection configs: detectron2's keys and defaults, as far as the standalone engine honours them.

Nothing is ignored: a key that is not in this tree, a duplicate key and a value that no part of
the engine implements are refused here, before anything is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import did_you_mean, flatten, load_yaml
from moco_det.results.matched import frozen_over_random
from moco_det.settings.values import check_bounds, check_kinds


def get_cfg() -> CfgNode:
    """The defaults: detectron2's own values under detectron2's own names (its defaults.py)."""
    cfg = CfgNode()
    cfg.VERSION = 2
    _add_model_defaults(cfg)
    cfg.INPUT = CfgNode(
        {
            "FORMAT": "BGR",
            "MASK_FORMAT": "polygon",
            "MIN_SIZE_TRAIN": (800,),
            "MIN_SIZE_TRAIN_SAMPLING": "choice",
            "MAX_SIZE_TRAIN": 1333,
            "MIN_SIZE_TEST": 800,
            "MAX_SIZE_TEST": 1333,
            "RANDOM_FLIP": "horizontal",
        }
    )
    cfg.DATASETS = CfgNode({"TRAIN": (), "TEST": ()})
    cfg.DATALOADER = CfgNode(
        {
            "NUM_WORKERS": 4,
            "ASPECT_RATIO_GROUPING": True,
            "FILTER_EMPTY_ANNOTATIONS": True,
            "SAMPLER_TRAIN": "TrainingSampler",
        }
    )
    cfg.SOLVER = CfgNode(
        {
            "AMP": {"ENABLED": False},
            "BASE_LR": 0.001,
            "BASE_LR_END": 0.0,
            "BIAS_LR_FACTOR": 1.0,
            "CHECKPOINT_PERIOD": 5000,
            # this project's own: backbone and RPN head as CUDA graphs
            "CUDA_GRAPHS": False,
            "CLIP_GRADIENTS": {
                "ENABLED": False,
                "CLIP_TYPE": "value",
                "CLIP_VALUE": 1.0,
                "NORM_TYPE": 2.0,
            },
            "GAMMA": 0.1,
            "IMS_PER_BATCH": 16,
            "LR_SCHEDULER_NAME": "WarmupMultiStepLR",
            "MAX_ITER": 40000,
            "MOMENTUM": 0.9,
            "NESTEROV": False,
            "REFERENCE_WORLD_SIZE": 0,
            "STEPS": (30000,),
            "WARMUP_FACTOR": 0.001,
            "WARMUP_ITERS": 1000,
            "WARMUP_METHOD": "linear",
            "WEIGHT_DECAY": 0.0001,
            "WEIGHT_DECAY_BIAS": None,
            "WEIGHT_DECAY_NORM": 0.0,
        }
    )
    cfg.TEST = CfgNode(
        {
            "DETECTIONS_PER_IMAGE": 100,
            "EVAL_PERIOD": 0,
            "PRECISE_BN": {"ENABLED": False, "NUM_ITER": 200},
        }
    )
    cfg.OUTPUT_DIR = "./output"
    cfg.SEED = -1
    return cfg


def _add_model_defaults(cfg: CfgNode) -> None:
    smooth_l1 = {"BBOX_REG_LOSS_TYPE": "smooth_l1", "BBOX_REG_LOSS_WEIGHT": 1.0}
    cfg.MODEL = CfgNode(
        {
            "META_ARCHITECTURE": "GeneralizedRCNN",
            "DEVICE": "cuda",
            "WEIGHTS": "",
            "MASK_ON": False,
            "PIXEL_MEAN": [103.53, 116.28, 123.675],
            "PIXEL_STD": [1.0, 1.0, 1.0],
            "BACKBONE": {"NAME": "build_resnet_backbone", "FREEZE_AT": 2},
            "RESNETS": {
                "DEPTH": 50,
                "NORM": "FrozenBN",
                "NUM_GROUPS": 1,
                "OUT_FEATURES": ["res4"],
                "RES2_OUT_CHANNELS": 256,
                "RES5_DILATION": 1,
                "STEM_OUT_CHANNELS": 64,
                "STRIDE_IN_1X1": True,
                "WIDTH_PER_GROUP": 64,
            },
            "FPN": {"FUSE_TYPE": "sum", "IN_FEATURES": [], "NORM": "", "OUT_CHANNELS": 256},
            # this project's own node: the convolution of build_resnet_dilated_c5_backbone
            "DILATED_C5": {"NORM": "", "OUT_CHANNELS": 512},
            "ANCHOR_GENERATOR": {
                "NAME": "DefaultAnchorGenerator",
                "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
                "OFFSET": 0.0,
                "SIZES": [[32, 64, 128, 256, 512]],
            },
            "PROPOSAL_GENERATOR": {"NAME": "RPN", "MIN_SIZE": 0},
            "RPN": {
                **smooth_l1,
                "BATCH_SIZE_PER_IMAGE": 256,
                "BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
                "HEAD_NAME": "StandardRPNHead",
                "IN_FEATURES": ["res4"],
                "IOU_LABELS": [0, -1, 1],
                "IOU_THRESHOLDS": [0.3, 0.7],
                "LOSS_WEIGHT": 1.0,
                "NMS_THRESH": 0.7,
                "POSITIVE_FRACTION": 0.5,
                "POST_NMS_TOPK_TEST": 1000,
                "POST_NMS_TOPK_TRAIN": 2000,
                "PRE_NMS_TOPK_TEST": 6000,
                "PRE_NMS_TOPK_TRAIN": 12000,
                "SMOOTH_L1_BETA": 0.0,
            },
            "ROI_HEADS": {
                "NAME": "Res5ROIHeads",
                "BATCH_SIZE_PER_IMAGE": 512,
                "IN_FEATURES": ["res4"],
                "IOU_LABELS": [0, 1],
                "IOU_THRESHOLDS": [0.5],
                "NMS_THRESH_TEST": 0.5,
                "NUM_CLASSES": 80,
                "POSITIVE_FRACTION": 0.25,
                "PROPOSAL_APPEND_GT": True,
                "SCORE_THRESH_TEST": 0.05,
            },
            "ROI_BOX_HEAD": {
                **smooth_l1,
                "NAME": "",
                "BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
                "CLS_AGNOSTIC_BBOX_REG": False,
                "CONV_DIM": 256,
                "FC_DIM": 1024,
                "NORM": "",
                "NUM_CONV": 0,
                "NUM_FC": 0,
                "POOLER_RESOLUTION": 14,
                "POOLER_SAMPLING_RATIO": 0,
                "POOLER_TYPE": "ROIAlignV2",
                "SMOOTH_L1_BETA": 0.0,
            },
            "ROI_MASK_HEAD": {
                "NAME": "MaskRCNNConvUpsampleHead",
                "CLS_AGNOSTIC_MASK": False,
                "CONV_DIM": 256,
                "NORM": "",
                "NUM_CONV": 0,
                "POOLER_RESOLUTION": 14,
                "POOLER_SAMPLING_RATIO": 0,
                "POOLER_TYPE": "ROIAlignV2",
            },
        }
    )


# What the standalone engine implements, where the key's type alone would admit more.
CHOICES: dict[str, tuple[Any, ...]] = {
    "VERSION": (2,),
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN",),
    "MODEL.BACKBONE.NAME": (
        "build_resnet_backbone",
        "build_resnet_fpn_backbone",
        "build_resnet_dilated_c5_backbone",
    ),
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "MODEL.RESNETS.NORM": ("BN", "SyncBN", "FrozenBN"),
    "MODEL.RESNETS.RES5_DILATION": (1, 2),
    "MODEL.DILATED_C5.NORM": ("", "BN", "SyncBN", "FrozenBN", "GN"),
    "MODEL.FPN.NORM": ("", "BN", "SyncBN", "FrozenBN", "GN"),
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator",),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN",),
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead",),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
    "MODEL.ROI_HEADS.NAME": ("StandardROIHeads", "Res5ROIHeads", "Res5ROIHeadsExtraNorm"),
    "MODEL.ROI_BOX_HEAD.NAME": ("", "FastRCNNConvFCHead"),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
    "MODEL.ROI_BOX_HEAD.NORM": ("", "BN", "SyncBN", "FrozenBN", "GN"),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlignV2", "ROIAlign"),
    "MODEL.ROI_MASK_HEAD.NAME": ("MaskRCNNConvUpsampleHead",),
    "MODEL.ROI_MASK_HEAD.NORM": ("", "BN", "SyncBN", "FrozenBN", "GN"),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": ("ROIAlignV2", "ROIAlign"),
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler",),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
}


NOT_HONOURED = (
    "the standalone engine does not honour the key {key}{hint}; take it out, correct its spelling, "
    "or run with --engine detectron2 if it is detectron2's"
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """A config file over the defaults, then ``KEY VALUE`` pairs over both, checked and frozen.

    Raises InputError for whatever the standalone engine would not honour.
    """
    cfg = get_cfg()
    merge(cfg, load_yaml(path), source=str(path))
    merge_overrides(cfg, overrides)
    check(cfg)
    cfg.freeze()
    return cfg


def merge(cfg: CfgNode, tree: dict[str, Any], *, source: str, unknown: str = NOT_HONOURED) -> None:
    """Merge a dictionary into a config of either engine; what does not fit is an InputError.

    ``unknown`` is what is said of a key that the config does not have.
    """
    known = flatten(cfg)
    for key, value in flatten(tree).items():
        if key not in known and value != {}:
            raise InputError(f"{source}: {unknown.format(key=key, hint=did_you_mean(key, known))}")
    try:
        cfg.merge_from_other_cfg(CfgNode(tree))
    except (ValueError, AssertionError, KeyError) as error:
        raise InputError(f"{source}: {error}") from None
    check_kinds(known, flatten(cfg), source)


def merge_overrides(cfg: CfgNode, overrides: Sequence[str]) -> None:
    """Merge ``KEY VALUE KEY VALUE ...`` as given on a command line."""
    if len(overrides) % 2:
        raise InputError(
            f"the options after the config come in pairs KEY VALUE: {overrides[-1]!r}; options "
            "such as --resume stand before them"
        )
    known = flatten(cfg)
    for key in overrides[0::2]:
        if key not in known:
            hint = did_you_mean(key, known) or ": keys are like SOLVER.BASE_LR"
            raise InputError(f"unknown key {key} on the command line{hint}")
    try:
        cfg.merge_from_list(list(overrides))
    except (ValueError, AssertionError, KeyError, SyntaxError) as error:
        raise InputError(f"on the command line: {error}") from None
    check_kinds(known, flatten(cfg), "on the command line")


def check(cfg: CfgNode) -> None:
    """Refuse values and combinations that no part of the engine implements."""
    flat = flatten(cfg)
    for key, allowed in CHOICES.items():
        if flat[key] not in allowed:
            names = ", ".join(repr(value) for value in allowed)
            raise InputError(f"{key} is {flat[key]!r}; the standalone engine implements {names}")
    check_values(cfg)
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and (len(sizes) != 2 or sizes[0] > sizes[1]):
        raise InputError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes!r}: MIN_SIZE_TRAIN_SAMPLING range needs the least and "
            "the largest size"
        )
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference and cfg.SOLVER.IMS_PER_BATCH % reference:
        raise InputError(
            f"SOLVER.REFERENCE_WORLD_SIZE {reference} does not divide SOLVER.IMS_PER_BATCH "
            f"{cfg.SOLVER.IMS_PER_BATCH}: it is the number of processes the config was made for"
        )
    check_heads(cfg)


def check_values(cfg: CfgNode) -> None:
    """Refuse what no run of either engine can mean."""
    flat = flatten(cfg)
    check_bounds(flat)
    frozen = frozen_over_random(flat)
    if frozen:
        key, reason = frozen
        raise InputError(f"{key} {flat[key]} {reason}")
    if not cfg.DATASETS.TRAIN or not cfg.DATASETS.TEST:
        raise InputError("DATASETS.TRAIN and DATASETS.TEST must each name a data set")


def check_heads(cfg: CfgNode) -> None:
    """Refuse a second stage that the backbone has no features for."""
    heads, backbone = cfg.MODEL.ROI_HEADS, cfg.MODEL.BACKBONE.NAME
    if heads.NAME == "StandardROIHeads":
        if not cfg.MODEL.ROI_BOX_HEAD.NAME:
            raise InputError("StandardROIHeads needs MODEL.ROI_BOX_HEAD.NAME FastRCNNConvFCHead")
        return
    features = list(cfg.MODEL.RESNETS.OUT_FEATURES)
    if backbone != "build_resnet_backbone" or features != ["res4"]:
        raise InputError(
            f"MODEL.ROI_HEADS.NAME {heads.NAME} has res5 in the head: it needs "
            "MODEL.BACKBONE.NAME build_resnet_backbone with MODEL.RESNETS.OUT_FEATURES ['res4'], "
            f"not {backbone} with {features}"
        )
    if cfg.MODEL.RESNETS.DEPTH in (18, 34) and heads.NAME == "Res5ROIHeads":
        raise InputError(
            f"MODEL.ROI_HEADS.NAME Res5ROIHeads is detectron2's, whose res5 after ResNet-"
            f"{cfg.MODEL.RESNETS.DEPTH} has bottlenecks that no weights fit: take "
            "Res5ROIHeadsExtraNorm, which has the ResNet's own"
        )


def set_values(cfg: CfgNode, changes: Sequence[Any]) -> CfgNode:
    """A frozen copy of a config with ``[KEY, value, KEY, value ...]`` set."""
    changed = cfg.clone()
    changed.defrost()
    changed.merge_from_list(list(changes))
    changed.freeze()
    return changed


def dump(cfg: CfgNode) -> str:
    """The fully resolved config as yaml text, keys sorted."""
    return yaml.safe_dump(_plain(cfg), sort_keys=True, default_flow_style=None, width=100)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
