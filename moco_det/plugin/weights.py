"""MODEL.WEIGHTS into a detectron2 model, strictly: nothing stays random that was not named."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode
from torch import nn

from moco_det.errors import InputError
from moco_det.loading import Loaded, check_model_state, load_initial_weights, read_checkpoint
from moco_det.runs import check_input_of_weights


def load_weights(cfg: CfgNode, model: nn.Module) -> Loaded:
    """Fill the backbone from a backbone file, or the whole model from a .pth checkpoint.

    detectron2's own checkpointer matches names by heuristics and only warns of what it did not
    find; here names and shapes must be exactly the model's. Raises InputError, also where the
    config contradicts what the file says of its input.
    """
    loaded = load_initial_weights(model, cfg.MODEL.WEIGHTS)
    if loaded.backbone is not None:
        check_input_of_weights(
            loaded.backbone.input,
            weights=cfg.MODEL.WEIGHTS,
            image_format=cfg.INPUT.FORMAT,
            mean=cfg.MODEL.PIXEL_MEAN,
            std=cfg.MODEL.PIXEL_STD,
            stride_in_1x1=cfg.MODEL.RESNETS.STRIDE_IN_1X1,
        )
    return loaded


def check_resumable(model: nn.Module, path: str, *, training: bool) -> None:
    """InputError unless detectron2's checkpointer can go on from this file, nothing left out."""
    state = read_checkpoint(Path(path))
    check_model_state(model, state["model"], Path(path))
    if training and "trainer" not in state:
        raise InputError(
            f"--resume: {path} was not written by a training run of detectron2: go on with "
            "--engine standalone, or start from it with MODEL.WEIGHTS in another OUTPUT_DIR"
        )
