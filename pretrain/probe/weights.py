"""Encoders to probe: a checkpoint of ours, somebody else's arrays, or fresh random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moco_det.foundation.errors import InputError
from pretrain.augment import IMAGE_MEAN, IMAGE_STD
from pretrain.checkpoints import digest, settings_of
from pretrain.encoders import ARCHITECTURES, Encoder

RANDOM = "random"  # stands for random weights where a file is named


@dataclass(frozen=True)
class Start:
    """An encoder, the name of its arm, and where it comes from.

    `iterations` are the steps it was pre-trained for (None: not known), `seed` that of its
    pre-training, `settings` a digest of its pre-training's config without seed and folder: equal
    for the trials of one arm. `size` is the side of the views it learned from. `embeds` says
    whether its head gives an embedding that was trained. Random weights come from no `file`.
    """

    encoder: Encoder
    arch: str
    method: str | None
    iterations: int | None = None
    seed: int | None = None
    settings: str = ""
    size: int | None = None
    embeds: bool = False
    name: str = RANDOM
    file: str | None = None
    sha256: str | None = None
    format: str | None = None

    def row(self) -> dict[str, Any]:
        """The `init` of a row of results.jsonl."""
        source: dict[str, Any] | None = None
        if self.file is not None:
            source = {"format": self.format, "method": self.method, "arch": self.arch}
            source |= {"file": self.file, "seed": self.seed, "settings": self.settings}
        init = {"name": self.name, "weights": self.file, "sha256": self.sha256}
        return {**init, "source": source, "verified": None, "input": None}


def load_starts(
    names: Sequence[str],
    load_file: Callable[[Path], Start],
    *,
    arch: str | None,
    seed: int,
    name: str | None,
) -> list[Start]:
    """Every encoder in its order: a file, or for "random" weights of `arch` or of the files'.

    `name` is that of the files' arm; of the random weights' where there are no files.
    """
    loaded = {text: load_file(Path(text)) for text in names if text != RANDOM}
    archs = {start.arch for start in loaded.values()}
    arch = arch or (min(archs) if len(archs) == 1 else None)
    starts = []
    for text in names:
        if text in loaded:
            starts.append(replace(loaded[text], name=name or loaded[text].name))
        elif arch is None:
            raise InputError("random weights need an architecture: give --arch, such as resnet18")
        else:
            given = RANDOM if loaded else name or RANDOM
            starts.append(replace(random_start(arch, seed=seed), name=given))
    return starts


def common_size(starts: Sequence[Start]) -> int:
    """The one size that the checkpoints were trained at, 224 where none says so."""
    sizes = {start.size for start in starts if start.size is not None}
    if len(sizes) > 1:
        shown = ", ".join(map(str, sorted(sizes)))
        raise InputError(f"the checkpoints were trained at sizes {shown}: give one by --size")
    return max(sizes, default=224)


def packed_start(content: Mapping[str, Any], *, origin: str) -> Start:
    """The kept encoder of a checkpoint's content, and its origin; `origin` is for errors."""
    arch, head = content["arch"], content["head"]
    kind, last = ("mlp", "2.weight") if "2.weight" in head else ("fc", "weight")
    encoder = _encoder(arch, origin, head=kind, dim=len(head[last]))
    encoder.trunk.load_state_dict(content["encoder"])
    encoder.head.load_state_dict(head)
    _check_finite(encoder, origin)
    config = content["config"]
    return Start(
        encoder=encoder,
        arch=arch,
        method=content["method"],
        iterations=content["state"].get("iteration"),
        seed=config.get("SEED"),
        settings=settings_of(config),
        size=config.get("AUGMENT", {}).get("SIZE"),
        embeds=content["method"] != "supervised",
    )


def random_start(arch: str, *, seed: int) -> Start:
    """Random weights as torchvision draws them, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = _encoder(arch, "random weights")
    return Start(encoder, arch, "random", iterations=0, seed=seed, embeds=True)


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
    encoder = _encoder(arch, origin)
    _check_fed(fed, origin)
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
    return Start(encoder, arch, method, settings=digest(origin))


def _encoder(arch: str, origin: str, head: str = "fc", dim: int = 128) -> Encoder:
    if arch not in ARCHITECTURES:
        raise InputError(
            f"{origin}: no architecture {arch!r}; choose one of {', '.join(ARCHITECTURES)}"
        )
    return Encoder(arch, head=head, dim=dim)


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
