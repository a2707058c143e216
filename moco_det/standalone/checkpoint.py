"""A run's state between two iterations: saved whole, found again, restored exactly.

A checkpoint is a dictionary that ``torch.load(..., weights_only=True)`` reads: ``model`` under
detectron2's names, and what it takes to go on as if never stopped.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch

from moco_det.foundation import collectives
from moco_det.foundation.atomic import write_text
from moco_det.foundation.checkpoints import (
    LAST,
    Content,
    check_entries,
    newest_whole,
    noted_last,
    restore_optimizer,
    restoring,
    save_checkpoint,
)
from moco_det.foundation.errors import InputError
from moco_det.standalone.detector import GeneralizedRCNN
from moco_det.weights.loading import load_model_state, read_checkpoint

logger = logging.getLogger(__name__)

# What a run goes on from, beside the model.
ENTRIES = {
    "optimizer": {"state": dict, "param_groups": list},
    "scaler": dict,
    "iteration": int,
    "random": list,
}
PERIODIC = "model_{:07d}.pth"


def save(
    output: Path,
    name: str,
    model: GeneralizedRCNN,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    iteration: int,
    seed: int,
    streams: int,
    *,
    seconds: float,
    evaluation_due: bool,
) -> None:
    """The checkpoint from which a run goes on after ``iteration`` as if never stopped.

    ``seconds`` are those of the training so far; ``evaluation_due`` says that its evaluation after
    this iteration was given up.
    """
    on_gpu = torch.cuda.is_available()
    states = collectives.gather_objects(torch.get_rng_state())
    states_gpu = collectives.gather_objects(torch.cuda.get_rng_state() if on_gpu else None)
    if not collectives.is_main():
        return
    content = {
        "format": "moco-det-detector/1",
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "iteration": iteration,
        "seed": seed,
        "streams": streams,
        "random": states,
        "seconds": seconds,
        "evaluation_due": evaluation_due,
    }
    if on_gpu:
        content["random_cuda"] = states_gpu
    write(output, name, content)


def write(folder: Path, name: str, content: Content) -> Path:
    """Write a checkpoint, then point ``last_checkpoint`` at it, as detectron2 does."""
    save_checkpoint(content, folder / name)
    write_text(folder / LAST, name)
    return folder / name


def checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoint files: the one that was written last, then the others, newest first."""
    pattern = re.compile(r"model_(\d{7}|final)\.pth")
    found = [f for f in folder.glob("model_*.pth") if pattern.fullmatch(f.name)]
    last = noted_last(folder)
    return sorted(found, key=lambda f: (f == last, f.stat().st_mtime), reverse=True)


def last_checkpoint(folder: Path) -> tuple[Path, Content] | None:
    """The newest whole checkpoint of a run, None where there is none at all."""
    return newest_whole(checkpoints(folder), read_checkpoint)


def check_resumable(path: Path, content: Content) -> int:
    """The iterations that a checkpoint has; InputError where it is another engine's."""
    lacking = [key for key in ("optimizer", "scaler", "iteration", "random") if key not in content]
    if lacking:
        raise InputError(
            f"--resume: {path} has no {', '.join(lacking)}: it is not of the standalone engine; "
            "resume it with --engine detectron2, or give it as MODEL.WEIGHTS of a new run"
        )
    check_entries(content, {**ENTRIES, **({"seed": int} if "seed" in content else {})}, path)
    for key in ("iteration", "seed"):
        if not 0 <= content.get(key, 0) < 2**63:
            raise InputError(f"--resume: {path} has {key} {content[key]}: remove the file")
    return int(content["iteration"]) + 1


def begun_by(content: Content) -> int:
    """How many processes a checkpoint's run began with: the streams that its batches come from."""
    return int(content.get("streams", len(content["random"])))


def restore(
    found: tuple[Path, Content],
    model: GeneralizedRCNN,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> int:
    """Go back to a checkpoint; returns the next iteration."""
    path, content = found
    load_model_state(model, content["model"], path)
    states, rank, world = content["random"], collectives.rank(), collectives.world_size()
    with restoring(path):
        restore_optimizer(optimizer, content["optimizer"])
        scaler.load_state_dict(content["scaler"])
    if len(states) != world:
        logger.warning(
            "%s was written by %d process(es) and is resumed by %d: the batches are those of the "
            "run that was never stopped, the regions that a process samples in them are others",
            path,
            len(states),
            world,
        )
    # The process that had this one's first image; where several have images of it, the first of
    # them takes its state, and the others keep that of their seed.
    owner = rank * len(states) // world
    if owner != (rank - 1) * len(states) // world:
        with restoring(path):
            torch.set_rng_state(states[owner])
            if torch.cuda.is_available() and "random_cuda" in content:
                torch.cuda.set_rng_state(content["random_cuda"][owner])
    logger.info("resumed from %s after iteration %d", path, content["iteration"] + 1)
    return int(content["iteration"]) + 1
