"""The R50-dilated-C5 backbone of the MoCo paper in detectron2's registry."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_resnet_backbone
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor
from torch.nn import functional as F


class DilatedC5(Backbone):
    """A ResNet with a dilated res5, then a 3x3 convolution with its norm and ReLU.

    The same as the standalone engine's `DilatedC5`, tensor by tensor; the paper's description
    (appendix A.1) leaves open whether a ReLU follows.
    """

    def __init__(self, bottom_up: Backbone, *, out_channels: int, norm: str) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        if list(shapes) != ["res5"] or shapes["res5"].stride != 16:
            raise ValueError(
                "a dilated C5 needs MODEL.RESNETS.OUT_FEATURES ['res5'] and RES5_DILATION 2"
            )
        self.bottom_up = bottom_up
        layer = get_norm(norm, out_channels)
        self.reduce = Conv2d(
            shapes["res5"].channels,
            out_channels,
            kernel_size=3,
            padding=1,
            bias=layer is None,
            norm=layer,
            activation=F.relu_,
        )
        c2_msra_fill(self.reduce)
        self._out_features = ["res5"]
        self._out_feature_strides = {"res5": 16}
        self._out_feature_channels = {"res5": out_channels}

    def forward(self, x: torch.Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) to {"res5": (N, out_channels, H / 16, W / 16)}."""
        return {"res5": self.reduce(self.bottom_up(x)["res5"])}


def build_resnet_dilated_c5_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DilatedC5:
    """The backbone that MODEL.RESNETS and MODEL.DILATED_C5 describe."""
    return DilatedC5(
        build_resnet_backbone(cfg, input_shape),
        out_channels=cfg.MODEL.DILATED_C5.OUT_CHANNELS,
        norm=cfg.MODEL.DILATED_C5.NORM,
    )


def register_backbones() -> None:
    """Make the backbone known to yaml files."""
    if build_resnet_dilated_c5_backbone.__name__ not in BACKBONE_REGISTRY:
        BACKBONE_REGISTRY.register(build_resnet_dilated_c5_backbone)
