"""The formats of checkpoints: formats.yaml, one entry each, and what an entry says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moco_det.foundation.strict_yaml import load_mapping
from moco_det.weights.tensors import TensorRef
from moco_det.weights.vocabularies import VOCABULARIES

# Pixels on the scale 0..255; torchvision's published statistics times 255.
RGB_IMAGENET: dict[str, Any] = {
    "format": "RGB",
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
    "stride_in_1x1": False,
}
# The caffe models of MSRA that detectron2's own configs start from.
BGR_MSRA: dict[str, Any] = {
    "format": "BGR",
    "mean": [103.53, 116.28, 123.675],
    "std": [1.0, 1.0, 1.0],
    "stride_in_1x1": True,
}
PIXELS = {
    "rgb": RGB_IMAGENET,
    "bgr_msra": BGR_MSRA,
    # Facebook's Caffe2 ResNeXt: the stride in the 3x3; with a fused norm the std is fused too.
    "bgr_resnext": {**BGR_MSRA, "std": [57.375, 57.12, 58.395], "stride_in_1x1": False},
    "bgr_resnext_affine": {**BGR_MSRA, "stride_in_1x1": False},
}

# What an encoder may be called: each project's own word. Trained by gradient are query, online,
# student and model; averages of them are key, target, teacher and ema.
ENCODERS = ("query", "key", "online", "target", "teacher", "student", "ema", "model")

Table = dict[str, TensorRef]


@dataclass(frozen=True)
class Format:
    """One entry of formats.yaml, which says what each field means."""

    name: str
    encoders: Mapping[str, list[str]]
    head: list[str]
    tables: list[list[str]] = field(default_factory=lambda: [["state_dict"], [""]])
    names: str = "torchvision"
    marker: list[str] | None = None
    has: str | None = None
    lacks: str | None = None
    grouped: bool | None = None
    pixels: str | None = "rgb"
    by_name_only: bool = False
    behind: list[str] = field(default_factory=list)

    @property
    def input(self) -> dict[str, Any] | None:
        """What the encoder was fed; None where the file itself must say."""
        return None if self.pixels is None else PIXELS[self.pixels]

    @property
    def affine(self) -> bool:
        """Whether norms may lack statistics and convolutions have biases, as Caffe's do."""
        return self.names == "caffe2"

    def backbone_name(self, encoder: str, key: str) -> str | None:
        """The torchvision name of a key, or None if it is not this encoder's backbone."""
        for prefix in self.encoders[encoder]:
            match = re.match(prefix, key)
            name = VOCABULARIES[self.names](key[match.end() :]) if match else None
            if name is not None:
                return name
        return None

    def is_marked(self, root: Mapping[Any, Any]) -> bool:
        """Whether a checkpoint's root has the marker, if one is wanted."""
        if self.marker is None:
            return True
        key, *texts = self.marker
        return key in root and (not texts or root[key] in texts)

    def shows_in(self, table: Table) -> bool:
        """Whether a table of tensors has what tells this format from others of the same names."""

        def some(pattern: str) -> bool:
            return any(re.match(pattern, key) for key in table)

        return (
            (self.has is None or some(self.has))
            and (self.lacks is None or not some(self.lacks))
            and (self.grouped is None or self.grouped == _is_grouped(table))
        )


def _is_grouped(table: Table) -> bool:
    """Whether Caffe2's first 3x3 convolution has groups: a ResNeXt."""
    middle = table.get("res2_0_branch2b_w")
    return middle is not None and len(middle.shape) == 4 and middle.shape[0] != middle.shape[1]


_TEXT = Path(__file__).with_name("formats.yaml").read_text(encoding="utf-8")
BY_NAME = {n: Format(name=n, **entry) for n, entry in load_mapping(_TEXT, "formats.yaml").items()}
FORMATS = tuple(BY_NAME.values())
