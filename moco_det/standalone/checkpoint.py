"""Weights into the detector, with a statement of what stays random; and a run's own checkpoints.

A run's checkpoint is a dictionary that ``torch.load(..., weights_only=True)`` reads: ``model``
under detectron2's names, and what it takes to go on as if never stopped.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moco_det.errors import InputError
from moco_det.standalone.detector import GeneralizedRCNN
from moco_det.weights import Backbone, load_backbone

BACKBONE_PREFIX = "backbone.bottom_up."
COUNTER = "num_batches_tracked"
LAST = "last_checkpoint"


@dataclass(frozen=True)
class Loaded:
    """What came from a file and what starts random."""

    tensors: int
    of: int
    new_layers: tuple[str, ...]
    path: Path | None
    backbone: Backbone | None

    def line(self) -> str:
        """One sentence for the log."""
        names = ", ".join(self.new_layers)
        if self.path is None:
            return (
                f"MODEL.WEIGHTS is empty: all {self.of} backbone tensors and "
                f"{len(self.new_layers)} new layers are randomly initialised, as asked"
            )
        if not self.new_layers:
            return f"{self.tensors} of {self.of} tensors of the whole detector loaded"
        return (
            f"{self.tensors} of {self.of} backbone tensors loaded from {self.path}, "
            f"{len(self.new_layers)} new layers initialised: {names}"
        )


def load_initial_weights(model: GeneralizedRCNN, path: str) -> Loaded:
    """Fill the backbone from a converted file, or the whole detector from a checkpoint of it.

    Exactly the layers outside the backbone may stay random, and only with a backbone file. Any
    other missing, unexpected or differently shaped tensor is an InputError, and the model is
    left as it was.
    """
    expected = backbone_names(model)
    if path == "":
        return Loaded(0, len(expected), new_layers(model), None, None)
    file = Path(path)
    if file.suffix in (".pth", ".pt"):
        state = read_checkpoint(file)
        load_model_state(model, state["model"], file)
        of = len(floats(model.state_dict()))
        return Loaded(of, of, (), file, None)
    backbone = load_backbone(file)
    tensors = {name: torch.from_numpy(array) for name, array in backbone.model.items()}
    compare(expected, tensors, file)
    with torch.no_grad():
        for name, target in expected.items():
            target.copy_(tensors[name])
    return Loaded(len(expected), len(expected), new_layers(model), file, backbone)


def backbone_names(model: GeneralizedRCNN) -> dict[str, Tensor]:
    """The backbone's tensors by their bare names (stem.*, res2.* ...), counters left out."""
    state = floats(model.state_dict())
    return {
        name.removeprefix(BACKBONE_PREFIX): tensor
        for name, tensor in state.items()
        if name.startswith(BACKBONE_PREFIX)
    }


def new_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers outside the backbone's ResNet: those that every arm starts anew."""
    names = [n for n in floats(model.state_dict()) if not n.startswith(BACKBONE_PREFIX)]
    return tuple(dict.fromkeys(name.rsplit(".", 1)[0] for name in names))


def floats(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without BN's batch counters, which no published file agrees on."""
    return {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}


def compare(expected: dict[str, Tensor], given: dict[str, Tensor], path: Path) -> None:
    """InputError unless names and shapes are the same."""
    missing = sorted(expected.keys() - given.keys())
    unexpected = sorted(given.keys() - expected.keys())
    if missing or unexpected:
        raise InputError(
            f"{path} does not fit this model: {len(missing)} tensors missing {some(missing)}, "
            f"{len(unexpected)} unexpected {some(unexpected)}; is it another architecture "
            "(MODEL.RESNETS.DEPTH, WIDTH_PER_GROUP, NUM_GROUPS)?"
        )
    for name, tensor in expected.items():
        if tensor.shape != given[name].shape:
            raise InputError(
                f"{path} does not fit this model: {name} has shape {tuple(given[name].shape)}, "
                f"the model needs {tuple(tensor.shape)}; correct MODEL.RESNETS or NUM_CLASSES"
            )
        if not bool(torch.isfinite(given[name]).all()):
            raise InputError(f"{path}: {name} holds Inf or NaN; convert a healthy checkpoint")


def some(names: list[str], limit: int = 4) -> str:
    more = ", ..." if len(names) > limit else ""
    return "(" + ", ".join(names[:limit]) + more + ")"


def load_model_state(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Fill the whole model from its own state dict, or raise InputError and fill nothing."""
    # detectron2 also writes the anchors and the pixel statistics of some versions
    extra = ("pixel_mean", "pixel_std", "anchor_generator")
    given = {n: t for n, t in floats(state).items() if not any(word in n for word in extra)}
    compare(floats(model.state_dict()), given, path)
    model.load_state_dict(state | {k: v for k, v in model.state_dict().items() if k not in state})


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A run's checkpoint, tensors on the CPU; InputError if it is none."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"checkpoint {path} does not exist: check MODEL.WEIGHTS") from None
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is no whole checkpoint ({reason})") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(
            f"{path} is not a detector's checkpoint; if it is a pre-training checkpoint: "
            f"python tools/convert_weights.py {path} weights/{path.stem}.pkl"
        )
    return content


def save_checkpoint(folder: Path, name: str, content: dict[str, Any]) -> Path:
    """Write ``name`` whole or not at all, then point ``last_checkpoint`` at it."""
    path = folder / name
    temporary = folder / f".{name}.tmp"
    with open(temporary, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    pointer = folder / f".{LAST}.tmp"
    pointer.write_text(name)
    os.replace(pointer, folder / LAST)
    return path


def last_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint of a run; a damaged one is passed over with a note."""
    pattern = re.compile(r"model_(\d{7}|final)\.pth")
    found = [f for f in folder.glob("model_*.pth") if pattern.fullmatch(f.name)]
    pointer = folder / LAST
    if pointer.is_file():
        first = folder / pointer.read_text().strip()
        found = sorted(found, key=lambda f: (f == first, f.stat().st_mtime), reverse=True)
    for path in found:
        try:
            return path, read_checkpoint(path)
        except InputError as error:
            print(f"warning: {error}; the checkpoint before it is used", flush=True)
    return None
