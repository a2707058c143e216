"""Detection configs: detectron2's keys and defaults, as far as the standalone engine honours them.

Nothing is ignored: a key that is not in this tree, a duplicate key and a value that no part of
the engine implements are refused here, before anything is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import did_you_mean, flatten, load_yaml, nest, read_overrides
from moco_det.results.matched import BUILDER_KEY, TIMM_BACKBONE, frozen_over_random
from moco_det.settings.values import LIMITS, check_bounds, check_kinds, read_beside

# Where detectron2's defaults have tuples.
TUPLES = {
    "MODEL.RPN": ("BBOX_REG_WEIGHTS",),
    "MODEL.ROI_BOX_HEAD": ("BBOX_REG_WEIGHTS",),
    "INPUT": ("MIN_SIZE_TRAIN",),
    "DATASETS": ("TRAIN", "TEST"),
    "SOLVER": ("STEPS",),
}


def get_cfg() -> CfgNode:
    """The defaults: detectron2's own values under detectron2's own names."""
    cfg = CfgNode(read_beside("defaults.yaml"))
    for section, keys in TUPLES.items():
        node = reduce(CfgNode.__getitem__, section.split("."), cfg)
        node.update({key: tuple(node[key]) for key in keys})
    return cfg


NOT_HONOURED = (
    "the standalone engine does not honour the key {key}; take it out, correct its spelling, "
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
            hint = did_you_mean(key, known)
            raise InputError(f"{source}: {unknown.format(key=key)}{hint}")
    try:
        cfg.merge_from_other_cfg(CfgNode(tree))
    except (ValueError, AssertionError, KeyError) as error:
        raise InputError(f"{source}: {error}") from None
    check_kinds(known, flatten(cfg), source)


def merge_overrides(cfg: CfgNode, overrides: Sequence[str]) -> None:
    """Merge ``KEY VALUE KEY VALUE ...`` as given on a command line."""
    tree = nest(dict(read_overrides(overrides, flatten(cfg))))
    merge(cfg, tree, source="on the command line")


def check(cfg: CfgNode) -> None:
    """Refuse values and combinations that no part of the engine implements."""
    flat = flatten(cfg)
    for key, allowed in LIMITS["choices"].items():
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
    check_heads(cfg)


def check_values(cfg: CfgNode) -> None:
    """Refuse what no run of either engine can mean."""
    flat = flatten(cfg)
    check_bounds(flat)
    check_timm(flat)
    frozen = frozen_over_random(flat)
    if frozen:
        key, reason = frozen
        raise InputError(f"{key} {flat[key]} {reason}")
    if not cfg.DATASETS.TRAIN or not cfg.DATASETS.TEST:
        raise InputError(
            "DATASETS.TRAIN and DATASETS.TEST must each name a data set: add DATASETS.TRAIN "
            "\"('voc://DIR?split=train',)\" and DATASETS.TEST \"('voc://DIR?split=val',)\""
        )
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference and cfg.SOLVER.IMS_PER_BATCH % reference:
        raise InputError(
            f"SOLVER.REFERENCE_WORLD_SIZE {reference} does not divide SOLVER.IMS_PER_BATCH "
            f"{cfg.SOLVER.IMS_PER_BATCH}: it is the number of processes the config was made for"
        )


def check_timm(flat: Mapping[str, Any]) -> None:
    """Refuse keys that only a timm network or another optimizer would honour."""
    if flat[BUILDER_KEY] != TIMM_BACKBONE:
        usual = {"MODEL.TIMM.NAME": "", "MODEL.TIMM.DROP_PATH": 0, "MODEL.TIMM.NORM": ""}
        usual |= {"MODEL.TIMM.WINDOW": 0, "SOLVER.LAYER_DECAY": 1}
        for key, value in usual.items():
            if flat[key] != value:
                raise InputError(f"{key} {flat[key]} needs {BUILDER_KEY} {TIMM_BACKBONE}")
    elif not flat["MODEL.TIMM.NAME"]:
        raise InputError(f"{TIMM_BACKBONE} needs MODEL.TIMM.NAME, as convnext_tiny")
    elif flat["SOLVER.CUDA_GRAPHS"]:
        raise InputError("SOLVER.CUDA_GRAPHS is for ResNets: set it False with a timm network")
    elif "res5" not in flat["MODEL.FPN.IN_FEATURES"]:
        raise InputError(
            f"MODEL.FPN.IN_FEATURES {flat['MODEL.FPN.IN_FEATURES']}: name res5 too, which a timm "
            "network has in any case"
        )
    if flat["SOLVER.OPTIMIZER"] == "AdamW" and (
        flat["SOLVER.NESTEROV"] or flat["SOLVER.MOMENTUM"] >= 1
    ):
        raise InputError("SOLVER.OPTIMIZER AdamW needs NESTEROV False and MOMENTUM below 1")


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
