"""What of a run detectron2's own checkpoints do not hold, and checkpoints that are whole."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase
from detectron2.utils import comm

from moco_det.foundation.atomic import write_text
from moco_det.foundation.checkpoints import LAST, save_checkpoint
from moco_det.plugin.loader import SharedBatches
from moco_det.plugin.random_state import random_state, set_random_state, untouched


class RunState(HookBase):
    """Random state of every process, seconds, and what the batches depend on.

    It is saved among the states of detectron2's hooks, and stands before the one that saves.
    """

    def __init__(self, batches: SharedBatches, period: int) -> None:
        self.batches, self.period = batches, period
        self.seconds = 0.0
        self.random: list[dict[str, Any]] = []
        self.evaluation_due = False  # a stop came in the one that followed the last step

    def before_train(self) -> None:
        self.began = time.monotonic() - self.seconds
        self._restore_random()

    def _restore_random(self) -> None:
        if comm.get_rank() < len(self.random):
            own = self.random[comm.get_rank()]
            set_random_state(own)
            if torch.cuda.is_available() and "cuda" in own:
                torch.cuda.set_rng_state(own["cuda"])

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 or done == self.trainer.max_iter:
            self.gather()

    def gather(self) -> None:
        """Every process calls this before the first one saves."""
        cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
        self.random = comm.all_gather(random_state() | cuda)

    def state_dict(self) -> dict[str, Any]:
        return {
            "seconds": time.monotonic() - self.began,
            "seed": self.batches.seed,
            "random": self.random,
            "evaluation_due": self.evaluation_due,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.random = state_dict["seconds"], state_dict["random"]
        self.evaluation_due = state_dict["evaluation_due"]
        self.batches.seed = state_dict["seed"]
        with untouched():  # what does not fit is told here
            self._restore_random()


class WholeCheckpointer(DetectionCheckpointer):
    """Writes checkpoints that are complete or absent; a full disk is an InputError."""

    def save(self, name: str, **kwargs: Any) -> None:
        if not self.save_to_disk:
            return
        states = {key: thing.state_dict() for key, thing in self.checkpointables.items()}
        content = {"model": self.model.state_dict(), **states, **kwargs}
        self.logger.info("Saving checkpoint to %s", Path(self.save_dir) / f"{name}.pth")
        save_checkpoint(content, Path(self.save_dir) / f"{name}.pth")
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_text(Path(self.save_dir) / LAST, last_filename_basename)
