"""Encoders to probe: a checkpoint of ours, somebody else's arrays, or fresh random weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moco_det.foundation.errors import InputError
from pretrain import checkpoints
from pretrain.augment import IMAGE_MEAN, IMAGE_STD
from pretrain.encoders import ARCHITECTURES, Encoder

# Config keys that do not change what is learned, beside the seed.
FREE_KEYS = (
    "SEED",
    "OUTPUT_DIR",
    "DEVICE",
    "KNN",
    "LOG_EVERY",
    "CHECKPOINT_EVERY",
    "TENSORBOARD",
    "WANDB",
)


@dataclass(frozen=True)
class Start:
    """An encoder and where it comes from.

    `iterations` are the steps it was pre-trained for (None: not known), `seed` that of its
    pre-training, `settings` a digest of its pre-training's config without seed and folder: equal
    for the trials of one arm. `size` is the side of the views it learned from. `embeds` says
    whether its head gives an embedding that was trained.
    """

    encoder: Encoder
    arch: str
    method: str | None
    iterations: int | None
    seed: int | None
    settings: str
    size: int | None
    embeds: bool


def load_encoder(path: Path) -> Encoder:
    """The kept encoder of a checkpoint.pth, with its head."""
    return packed_start(checkpoints.read(path), origin=str(path)).encoder


def packed_start(content: Mapping[str, Any], *, origin: str) -> Start:
    """The kept encoder of a checkpoint's content, and its origin; `origin` is for errors."""
    arch, head = content["arch"], content["head"]
    _check_arch(arch, origin)
    kind = "mlp" if "2.weight" in head else "fc"
    last = head["2.weight" if kind == "mlp" else "weight"]
    encoder = Encoder(arch, head=kind, dim=len(last))
    encoder.trunk.load_state_dict(content["encoder"])
    encoder.head.load_state_dict(head)
    _check_finite(encoder, origin)
    config = content["config"]
    learned = {key: value for key, value in config.items() if key not in FREE_KEYS}
    return Start(
        encoder=encoder,
        arch=arch,
        method=content["method"],
        iterations=content["state"].get("iteration"),
        seed=config.get("SEED"),
        settings=_digest(learned),
        size=config.get("AUGMENT", {}).get("SIZE"),
        embeds=content["method"] != "supervised",
    )


def random_start(arch: str, *, seed: int) -> Start:
    """Random weights as torchvision draws them, the same for the same seed."""
    _check_arch(arch, "random weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(arch, head="fc", dim=128)
    return Start(encoder, arch, "random", 0, seed, "", None, True)


def array_start(
    arrays: Mapping[str, NDArray[Any]],
    *,
    arch: str,
    method: str | None,
    fed: Mapping[str, Any] | None,
    origin: str,
) -> Start:
    """Weights under torchvision's names, without a head; counters of batches may be missing.

    `fed` is what the network was trained on: "format", "mean" and "std" on the scale 0..255 and
    "stride_in_1x1". `origin` names the file in errors and tells arms apart. Raises InputError where
    an array is missing, of another shape or too many, and where our views would feed it wrongly.
    """
    _check_arch(arch, origin)
    _check_fed(fed, origin)
    encoder = Encoder(arch, head="fc", dim=128)
    state: dict[str, Tensor] = {
        name: torch.from_numpy(np.array(array)) for name, array in arrays.items()
    }
    for name, counter in encoder.trunk.state_dict().items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, counter)
    try:
        encoder.trunk.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{origin} is not a whole {arch}: {reason}") from error
    _check_finite(encoder, origin)
    return Start(encoder, arch, method, None, None, _digest(origin), None, False)


def _check_arch(arch: str, origin: str) -> None:
    if arch not in ARCHITECTURES:
        raise InputError(
            f"{origin}: no architecture {arch!r}; choose one of {', '.join(ARCHITECTURES)}"
        )


def _check_fed(fed: Mapping[str, Any] | None, origin: str) -> None:
    wanted = [255 * value for value in (*IMAGE_MEAN, *IMAGE_STD)]
    given = [*fed["mean"], *fed["std"]] if fed else []
    close = len(given) == len(wanted) and np.allclose(given, wanted, rtol=0, atol=0.5)
    if not fed or fed["format"] != "RGB" or fed["stride_in_1x1"] or not close:
        raise InputError(
            f"{origin} was not trained on RGB images with ImageNet's mean and deviation in a "
            "ResNet of torchvision's strides, or does not say so: it cannot be probed"
        )


def _check_finite(encoder: Encoder, origin: str) -> None:
    for name, value in encoder.trunk.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{origin}: {name} is not finite; probe an earlier checkpoint")


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
