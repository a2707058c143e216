"""A run's own checkpoints: written whole or not at all, and found again.

A checkpoint is a dictionary that ``torch.load(..., weights_only=True)`` reads: ``model`` under
detectron2's names, and what it takes to go on as if never stopped.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from moco_det.foundation.atomic import replacing, write_text
from moco_det.foundation.errors import InputError
from moco_det.weights.loading import Loaded, load_initial_weights, load_model_state, read_checkpoint

__all__ = [
    "Loaded",
    "last_checkpoint",
    "load_initial_weights",
    "load_model_state",
    "read_checkpoint",
    "save_checkpoint",
]

LAST = "last_checkpoint"


def save_checkpoint(folder: Path, name: str, content: dict[str, Any]) -> Path:
    """Write ``name`` whole or not at all, then point ``last_checkpoint`` at it."""
    with replacing(folder / name) as file:
        torch.save(content, file)
    write_text(folder / LAST, name)
    return folder / name


def checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoint files, in no order."""
    pattern = re.compile(r"model_(\d{7}|final)\.pth")
    return [f for f in folder.glob("model_*.pth") if pattern.fullmatch(f.name)]


def last_checkpoint(folder: Path, *, quiet: bool = False) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint of a run; a damaged one is passed over with a note.

    InputError where there are some and none of them is whole: to start anew in silence would
    overwrite what is left of the run.
    """
    found = checkpoints(folder)
    pointer = folder / LAST
    first = folder / pointer.read_text().strip() if pointer.is_file() else None
    found.sort(key=lambda f: (f == first, f.stat().st_mtime), reverse=True)
    for path in found:
        try:
            return path, read_checkpoint(path)
        except InputError as error:
            if not quiet:
                print(f"warning: {error}; the checkpoint before it is used", flush=True)
    if found:
        raise InputError(
            f"--resume: none of the {len(found)} checkpoints in {folder} is whole: choose another "
            "OUTPUT_DIR to start anew"
        )
    return None
