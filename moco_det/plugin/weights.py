"""Checkpoints that detectron2 can go on from.

detectron2's own checkpointer matches names by heuristics and only warns of what it did not find;
here, as in `moco_det.weights.loading`, names and shapes must be exactly the model's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from moco_det.foundation.errors import InputError
from moco_det.weights.loading import check_model_state, read_checkpoint


def check_resumable(model: nn.Module, path: str, *, training: bool) -> dict[str, Any]:
    """InputError unless detectron2's checkpointer can go on from this file, nothing left out.

    Returns the trainer's state, an empty one where it is only scored.
    """
    state = read_checkpoint(Path(path))
    check_model_state(model, state["model"], Path(path))
    if training and "trainer" not in state:
        raise InputError(
            f"--resume: {path} was not written by a training run of detectron2: go on with "
            "--engine standalone, or start from it with MODEL.WEIGHTS in another OUTPUT_DIR"
        )
    return dict(state["trainer"]) if training else {}
