"""A run's state between two iterations: saved whole, found again, restored exactly."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from moco_det.foundation import collectives
from moco_det.foundation.errors import InputError
from moco_det.standalone.checkpoint import last_checkpoint, load_model_state, save_checkpoint
from moco_det.standalone.detector import GeneralizedRCNN

logger = logging.getLogger(__name__)


def save(
    output: Path,
    name: str,
    model: GeneralizedRCNN,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    iteration: int,
    seed: int,
) -> None:
    """A checkpoint from which the run goes on as if never stopped."""
    on_gpu = torch.cuda.is_available()
    states = collectives.gather_objects(torch.get_rng_state())
    states_gpu = collectives.gather_objects(torch.cuda.get_rng_state() if on_gpu else None)
    if collectives.rank() == 0:
        content = {
            "format": "moco-det-detector/1",
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "iteration": iteration,
            "seed": seed,
            "random": states,
        }
        if on_gpu:
            content["random_cuda"] = states_gpu
        save_checkpoint(output, name, content)


def restore(
    model: GeneralizedRCNN,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    output: Path,
) -> int:
    """Go back to the newest checkpoint, if there is one; returns the next iteration."""
    found = last_checkpoint(output)
    if found is None:
        logger.info("--resume: no checkpoint in %s, starting at iteration 0", output)
        return 0
    path, content = found
    load_model_state(model, content["model"], path)
    optimizer.load_state_dict(content["optimizer"])
    scaler.load_state_dict(content["scaler"])
    states, rank = content["random"], collectives.rank()
    if len(states) != collectives.world_size():
        logger.warning(
            "%s was written by %d process(es) and is resumed by %d: the run goes on, but not as "
            "if never stopped",
            path,
            len(states),
            collectives.world_size(),
        )
    if rank < len(states):
        torch.set_rng_state(states[rank])
        if torch.cuda.is_available() and "random_cuda" in content:
            torch.cuda.set_rng_state(content["random_cuda"][rank])
    logger.info("resumed from %s after iteration %d", path, content["iteration"] + 1)
    return int(content["iteration"]) + 1


def seed_of_run(output: Path) -> int:
    """The seed that a run with SEED -1 drew; -1 where its checkpoint does not say.

    InputError where the checkpoint is another engine's.
    """
    found = last_checkpoint(output, quiet=True)
    if found is None:
        return -1
    path, content = found
    lacking = [key for key in ("optimizer", "scaler", "iteration", "random") if key not in content]
    if lacking:
        raise InputError(
            f"--resume: {path} has no {', '.join(lacking)}: it is not of the standalone engine; "
            "resume it with --engine detectron2, or give it as MODEL.WEIGHTS of a new run"
        )
    return int(content.get("seed", -1))


def resume_model(model: GeneralizedRCNN, output: Path) -> None:
    found = last_checkpoint(output)
    if found is None:
        raise InputError(f"--resume: {output} holds no whole checkpoint")
    load_model_state(model, found[1]["model"], found[0])
