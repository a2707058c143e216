"""Checkpoints that detectron2 can go on from.

detectron2's own checkpointer matches names by heuristics and only warns of what it did not find;
here, as in `moco_det.weights.loading`, names and shapes must be exactly the model's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from moco_det.foundation.checkpoints import Content
from moco_det.foundation.errors import InputError
from moco_det.weights.loading import check_model_state


def check_resumable(model: nn.Module, path: Path, state: Content) -> int:
    """The iterations of a checkpoint; InputError unless detectron2 can go on from it."""
    check_model_state(model, state["model"], path)
    trainer = _dictionary(state, "trainer")
    done = trainer.get("iteration")
    if not (type(done) is int and 0 <= done < 2**63 and _dictionary(trainer, "_trainer")):
        raise InputError(
            f"--resume: {path} was not written by a training run of detectron2: go on with "
            "--engine standalone, or start from it with MODEL.WEIGHTS in another OUTPUT_DIR"
        )
    return done + 1


def run_state(state: Content) -> Content:
    """What `moco_det.plugin.run_state.RunState` saved; empty where another program did."""
    found = _dictionary(_dictionary(_dictionary(state, "trainer"), "hooks"), "RunState")
    lists = isinstance(found.get("random"), list) and found["random"]
    kinds: dict[str, Any] = {"seconds": (int, float), "seed": int}
    numbers = all(
        isinstance(found.get(k), kind) and 0 <= found[k] < 2**32 for k, kind in kinds.items()
    )
    return found if lists and numbers else {}


def _dictionary(content: Content, key: str) -> Content:
    found = content.get(key)
    return found if isinstance(found, dict) else {}
