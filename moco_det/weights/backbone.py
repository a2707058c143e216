"""What an engine loads: a backbone file, checked to be one. No torch, no network."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moco_det.foundation.commands import command
from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.weights.architectures import backbone_tensors, detector_keys
from moco_det.weights.download import local_path
from moco_det.weights.number_checks import check_numbers
from moco_det.weights.structure import convert_command
from moco_det.weights.timm_checkpoint import TimmCheckpoint, read_any


@dataclass(frozen=True)
class Backbone:
    """A backbone's float32 arrays under detectron2's bare names, and what is known of them.

    Those of a network of timm are under timm's names, as is `architecture`. `input` (scale
    0..255), `source` and `verified` are None where a file of another maker does not state them;
    `sha256` is the file's.
    """

    path: Path
    architecture: str
    model: dict[str, np.ndarray] = field(repr=False)
    input: dict[str, Any] | None
    source: dict[str, Any] | None
    verified: dict[str, Any] | None
    sha256: str

    @property
    def keys(self) -> dict[str, Any]:
        """The config keys that make a detector's backbone this one."""
        return detector_keys(self.architecture)


def load_backbone(path: str | Path) -> Backbone:
    """Load a backbone.pkl, a .safetensors of this project, or a detectron2 file, or fetch one.

    A detectron2 detector gives its backbone alone. Raises InputError for a missing, empty or
    damaged file, for a checkpoint that was not converted yet, and for incomplete backbones.
    """
    path = local_path(path)
    check_exists(path)
    source = read_any(path)
    if not source.is_backbone:
        source.known_input()
        raise InputError(
            f"{path} is a {source.format} checkpoint, not a backbone file: convert it with "
            f"`{convert_command(path)}`, or let train-net --convert do it"
        )
    arrays = source.arrays()
    if isinstance(source, TimmCheckpoint):
        names = {name: name for name in arrays}
    else:
        tensors = backbone_tensors(ARCHITECTURES[source.architecture])
        names = {t.detectron2: t.torchvision for t in tensors}
    # The reader's arrays may be views of the file's bytes; an engine may train on these.
    model = {own: np.array(arrays.pop(name)) for own, name in names.items()}
    check_numbers(model, path=path)
    return Backbone(
        path=path,
        architecture=source.architecture,
        model=model,
        input=source.input,
        source=source.origin,
        verified=source.proven,
        sha256=source.sha256,
    )


def check_exists(path: Path) -> None:
    """Raise InputError, with the command that makes it, where a weights file is not there."""
    if not path.exists():
        raise InputError(
            f"weights file {path} does not exist: check its name, or make it with "
            f"`{command('convert-weights')} CHECKPOINT {path.with_suffix('.pkl')}`"
        )
