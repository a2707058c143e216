"""The same yaml files over detectron2's own defaults, refused where a run would not honour them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.solver import build_lr_scheduler

from moco_det.foundation.errors import InputError
from moco_det.foundation.precision import check_device_kind
from moco_det.foundation.strict_yaml import flatten, load_yaml
from moco_det.settings.config import check_values, merge, merge_overrides
from moco_det.settings.values import LIMITS

# Values that other programs of detectron2 honour and this one does not.
HONOURED: dict[str, Sequence[Any]] = {
    "VERSION": (2,),
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN",),
    "MODEL.LOAD_PROPOSALS": (False,),
    "SOLVER.CUDA_GRAPHS": (False,),
    "TEST.AUG.ENABLED": (False,),
    **{key: LIMITS["choices"][key] for key in ("MODEL.TIMM.NORM", "SOLVER.OPTIMIZER")},
    "TEST.EVALUATOR": ("moco_det", "detectron2"),
    "DATALOADER.SAMPLER_TRAIN": (
        "TrainingSampler",
        "RepeatFactorTrainingSampler",
        "RandomSubsetTrainingSampler",
    ),
}


UNKNOWN = "detectron2 does not know the key {key}; take it out or correct its spelling"


def add_moco_det_config(cfg: CfgNode) -> None:
    """Add this project's own keys to a detectron2 config, as projects of detectron2 do.

    MODEL.DILATED_C5 is the 3x3 convolution of build_resnet_dilated_c5_backbone. TEST.EVALUATOR
    says whose scorer train_net takes: moco_det's, which both engines share, or detectron2's for
    the tasks that moco_det's has not. SOLVER.CUDA_GRAPHS is the standalone engine's. MODEL.TIMM is
    the network of build_timm_fpn_backbone; SOLVER.OPTIMIZER and LAYER_DECAY are honoured by
    `moco_det.plugin.trainer.Trainer`. WANDB is a project of Weights & Biases to log to. Calling
    twice is harmless.
    """
    cfg.MODEL.setdefault("DILATED_C5", CfgNode({"NORM": "", "OUT_CHANNELS": 512}))
    cfg.MODEL.setdefault("TIMM", CfgNode({"NAME": "", "DROP_PATH": 0.0, "NORM": "", "WINDOW": 0}))
    cfg.TEST.setdefault("EVALUATOR", "moco_det")
    for key, value in (("CUDA_GRAPHS", False), ("LAYER_DECAY", 1.0), ("OPTIMIZER", "SGD")):
        cfg.SOLVER.setdefault(key, value)
    cfg.setdefault("WANDB", "")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """A config file over detectron2's defaults, then ``KEY VALUE`` pairs over both; frozen.

    Raises InputError for an unknown or duplicate key, and for a value that cannot work.
    """
    cfg = get_cfg()
    add_moco_det_config(cfg)
    merge(cfg, load_yaml(path), source=str(path), unknown=UNKNOWN)
    merge_overrides(cfg, overrides)
    # detectron2 passes over steps after the end, but stumbles over one at the end
    cfg.SOLVER.STEPS = tuple(step for step in cfg.SOLVER.STEPS if step != cfg.SOLVER.MAX_ITER)
    check(cfg)
    cfg.freeze()
    return cfg


def check(cfg: CfgNode) -> None:
    """Refuse what would fail, or be passed over in silence, after the run has begun."""
    flat = flatten(cfg)
    for key, values in HONOURED.items():
        if flat[key] not in values:
            names = ", ".join(repr(value) for value in values)
            raise InputError(f"{key} is {flat[key]!r}; train_net on detectron2 honours {names}")
    if cfg.MODEL.KEYPOINT_ON and cfg.TEST.EVALUATOR != "detectron2":
        raise InputError(
            "MODEL.KEYPOINT_ON is True, but moco_det scores boxes and masks: set TEST.EVALUATOR "
            "detectron2"
        )
    check_values(cfg)
    check_schedule(cfg)
    check_device_kind(cfg.MODEL.DEVICE)


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
