"""The same yaml files over detectron2's own defaults, refused where a run would not honour them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.solver import build_lr_scheduler

from moco_det.config import POSITIVE, flatten, load_yaml
from moco_det.errors import InputError

# Values that other programs of detectron2 honour and this one does not.
HONOURED: dict[str, tuple[Any, ...]] = {
    "VERSION": (2,),
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN",),
    "MODEL.KEYPOINT_ON": (False,),
    "MODEL.LOAD_PROPOSALS": (False,),
    "TEST.AUG.ENABLED": (False,),
    "DATALOADER.SAMPLER_TRAIN": (
        "TrainingSampler",
        "RepeatFactorTrainingSampler",
        "RandomSubsetTrainingSampler",
    ),
}


def add_moco_det_config(cfg: CfgNode) -> None:
    """Add this project's own keys to a detectron2 config, as projects of detectron2 do.

    MODEL.DILATED_C5 is the 3x3 convolution of build_resnet_dilated_c5_backbone. Calling twice is
    harmless.
    """
    if "DILATED_C5" not in cfg.MODEL:
        cfg.MODEL.DILATED_C5 = CfgNode({"NORM": "", "OUT_CHANNELS": 512})


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """A config file over detectron2's defaults, then ``KEY VALUE`` pairs over both; frozen.

    Raises InputError for an unknown or duplicate key, and for a value that cannot work.
    """
    cfg = get_cfg()
    add_moco_det_config(cfg)
    merge(cfg, load_yaml(path), source=str(path))
    merge_overrides(cfg, overrides)
    # detectron2 passes over steps after the end, but stumbles over one at the end
    cfg.SOLVER.STEPS = tuple(step for step in cfg.SOLVER.STEPS if step != cfg.SOLVER.MAX_ITER)
    check(cfg)
    cfg.freeze()
    return cfg


def merge(cfg: CfgNode, tree: dict[str, Any], *, source: str) -> None:
    """Merge a dictionary into a config; a key or a type that does not fit is an InputError."""
    known = flatten(cfg)
    for key in flatten(tree):
        if key not in known:
            raise InputError(
                f"{source}: detectron2 does not know the key {key}; take it out or correct its "
                "spelling"
            )
    try:
        cfg.merge_from_other_cfg(CfgNode(tree))
    except (ValueError, AssertionError, KeyError) as error:
        raise InputError(f"{source}: {error}") from None


def merge_overrides(cfg: CfgNode, overrides: Sequence[str]) -> None:
    """Merge ``KEY VALUE KEY VALUE ...`` as given on a command line."""
    if len(overrides) % 2:
        raise InputError(f"the options after the config come in pairs KEY VALUE: {overrides[-1]!r}")
    known = flatten(cfg)
    for key in overrides[0::2]:
        if key not in known:
            raise InputError(f"unknown key {key} on the command line: keys are like SOLVER.BASE_LR")
    try:
        cfg.merge_from_list(list(overrides))
    except (ValueError, AssertionError, KeyError, SyntaxError) as error:
        raise InputError(f"on the command line: {error}") from None


def check(cfg: CfgNode) -> None:
    """Refuse what would fail, or be passed over in silence, after the run has begun."""
    flat = flatten(cfg)
    for key, values in HONOURED.items():
        if flat[key] not in values:
            names = ", ".join(repr(value) for value in values)
            raise InputError(f"{key} is {flat[key]!r}; train_net on detectron2 honours {names}")
    for key in POSITIVE:
        if not flat[key] > 0:
            raise InputError(f"{key} is {flat[key]!r}: it must be above zero")
    if cfg.MODEL.BACKBONE.FREEZE_AT > 0 and not cfg.MODEL.WEIGHTS:
        raise InputError(
            f"MODEL.BACKBONE.FREEZE_AT {cfg.MODEL.BACKBONE.FREEZE_AT} would freeze randomly "
            "initialised stages: give MODEL.WEIGHTS or set FREEZE_AT 0"
        )
    if not cfg.DATASETS.TRAIN or not cfg.DATASETS.TEST:
        raise InputError("DATASETS.TRAIN and DATASETS.TEST must each name a data set")
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference and cfg.SOLVER.IMS_PER_BATCH % reference:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} does not divide by "
            f"SOLVER.REFERENCE_WORLD_SIZE {reference}"
        )
    check_schedule(cfg)
    check_device(cfg.MODEL.DEVICE)


def check_schedule(cfg: CfgNode) -> None:
    """InputError where detectron2 makes no learning rate schedule of the config."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=cfg.SOLVER.BASE_LR)
    try:
        build_lr_scheduler(cfg, optimizer)
    except (AssertionError, KeyError, ValueError) as error:
        raise InputError(
            f"SOLVER.LR_SCHEDULER_NAME {cfg.SOLVER.LR_SCHEDULER_NAME}, STEPS {cfg.SOLVER.STEPS}, "
            f"MAX_ITER {cfg.SOLVER.MAX_ITER} make no schedule: {error}"
        ) from None


def check_device(name: str) -> None:
    """InputError where the machine lacks the device."""
    kind = name.split(":")[0]
    if kind not in ("cpu", "cuda"):
        raise InputError(f"MODEL.DEVICE is {name!r}: a run is made on cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "MODEL.DEVICE is cuda, but this machine has no CUDA device: add MODEL.DEVICE cpu"
        )


def set_values(cfg: CfgNode, changes: Sequence[Any]) -> CfgNode:
    """A frozen copy of a config with ``[KEY, value, KEY, value ...]`` set."""
    changed = cfg.clone()
    changed.defrost()
    changed.merge_from_list(list(changes))
    changed.freeze()
    return changed
