"""checkpoint.pth: what is in it, written whole or not at all, and found again.

The file is all that other packages see of a run: `encoder` has torchvision's ResNet names without
`fc`; it is read with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from moco_det.foundation.checkpoints import check_entries, load_checkpoint
from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import flatten
from pretrain.augment import IMAGE_MEAN, IMAGE_STD
from pretrain.config import PretrainConfig
from pretrain.methods.base import Method

FORMAT = "moco-det/1"
FINAL = "checkpoint.pth"
KEEP = 2  # periodic checkpoints that stay, so that a damaged one has one before it
# What a run goes on from.
ENTRIES: Mapping[str, Any] = {
    "encoder": dict,
    "head": dict,
    "config": dict,
    "state": {
        "method": dict,
        "optimizer": {"state": dict, "param_groups": list},
        "iteration": int,
        "data": dict,
        "corrupt": dict,
        "watch": dict,
        "rng": {"torch": Tensor},
        "sums": dict,
    },
}
# Config keys that do not change what is learned, beside the seed.
FREE_KEYS = (
    *("SEED", "OUTPUT_DIR", "DEVICE", "KNN"),
    *("LOG_EVERY", "CHECKPOINT_EVERY", "TENSORBOARD", "WANDB"),
)
TRUNK, HEAD = "encoder.trunk.", "encoder.head."


def pack(method: Method, cfg: PretrainConfig, state: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint; `state` is added to the method's own state."""
    everything = _on_cpu(method)
    rest = {n: value for n, value in everything.items() if not n.startswith((TRUNK, HEAD))}
    return {
        "format": FORMAT,
        "method": method.name,
        "arch": cfg.ENCODER.ARCH,
        "encoder": OrderedDict(_on_cpu(method.encoder.trunk)),
        "head": _on_cpu(method.encoder.head),
        "state": {"method": rest, **state},
        "config": cfg.plain(),
        "settings": settings_of(cfg.plain()),
        "versions": {
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "python": platform.python_version(),
        },
        "input": {"format": "RGB", "mean": list(IMAGE_MEAN), "std": list(IMAGE_STD)},
    }


def settings_of(config: Mapping[str, Any]) -> str:
    """A digest of what is learned and how, the same for all starts of an encoder."""
    return digest({key: value for key, value in config.items() if key not in FREE_KEYS})


def digest(content: Any) -> str:
    """sha256 of plain values."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def begun_by(content: Mapping[str, Any]) -> int:
    """How many processes the run began with; 0 where an older version has not written it."""
    state = content["state"]
    return int(state.get("processes") or (state.get("data") or {}).get("processes", 0))


def _on_cpu(module: nn.Module) -> dict[str, Tensor]:
    return {n: value.detach().cpu().contiguous() for n, value in module.state_dict().items()}


def unpack(method: Method, content: Mapping[str, Any]) -> None:
    """Load the method's weights and state; every name must match."""
    full: dict[str, Tensor] = {TRUNK + k: v for k, v in content["encoder"].items()}
    full.update({HEAD + k: v for k, v in content["head"].items()})
    full.update(content["state"]["method"])
    method.load_state_dict(full)


def read(path: Path, kind: str = FORMAT, *, way_out: str = "") -> dict[str, Any]:
    """The content of a checkpoint of this kind; for anything else InputError with the way out."""
    try:
        content = load_checkpoint(path)
    except InputError as error:
        raise InputError(f"{error}{way_out}") from None
    if not isinstance(content, dict) or content.get("format") != kind:
        raise InputError(f"{path} is not a checkpoint of format {kind}{way_out}")
    return content


def read_run(path: Path) -> dict[str, Any]:
    """The content of a checkpoint that a run goes on from; InputError where it is not whole."""
    content = read(path)
    check_entries(content, ENTRIES, path)
    tensors = {**content["encoder"], **content["head"]}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{path} is not a whole checkpoint: {name} is no tensor of numbers")
    for key, value in flatten(content["config"]).items():
        if not isinstance(value, str | int | float | list | tuple | None):
            kind = type(value).__name__
            raise InputError(f"{path} is not a whole checkpoint: {key} of its config is {kind}")
    return content


def periodic_name(iteration: int) -> str:
    """The file of the checkpoint after `iteration` steps."""
    return f"checkpoint_{iteration:08d}.pth"


def in_folder(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    final = [folder / FINAL] if (folder / FINAL).is_file() else []
    return final + sorted(folder.glob("checkpoint_[0-9]*.pth"), reverse=True)


def prune(folder: Path) -> None:
    """Remove all but the newest periodic checkpoints."""
    for path in [p for p in in_folder(folder) if p.name != FINAL][KEEP:]:
        path.unlink(missing_ok=True)
