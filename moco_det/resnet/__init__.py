"""The ResNet both the standalone engine and the conversion's proof run."""

from __future__ import annotations

from moco_det.resnet.layers import (
    Conv2d,
    FrozenBatchNorm2d,
    make_norm,
    msra_fill,
    xavier_fill,
)
from moco_det.resnet.network import (
    ARCHITECTURES,
    FEATURES,
    STAGES,
    Architecture,
    ResNet,
    make_stage,
)

__all__ = [
    "ARCHITECTURES",
    "FEATURES",
    "STAGES",
    "Architecture",
    "Conv2d",
    "FrozenBatchNorm2d",
    "ResNet",
    "make_norm",
    "make_stage",
    "msra_fill",
    "xavier_fill",
]
