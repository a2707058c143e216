"""The heads of the MoCo papers' detectors in detectron2's registry."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads
from torch import nn

from moco_det.plugin.backbones import BASIC_BLOCKS, basic_stage


class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """C4's head with a norm layer after res5 (MoCo paper, appendix A.1).

    Where its parent has three bottlenecks whatever the depth, ResNet-18 and -34 have their own
    res5 here: no published weights would fit the bottlenecks.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        parts: dict[str, Any] = super().from_config(cfg, input_shape)
        if cfg.MODEL.RESNETS.DEPTH in BASIC_BLOCKS:
            parts["res5"] = nn.Sequential(*basic_stage(cfg, 3))
        res5 = parts["res5"]
        layer = get_norm(cfg.MODEL.RESNETS.NORM, res5[-1].out_channels)
        if layer is None:
            raise ValueError("Res5ROIHeadsExtraNorm needs MODEL.RESNETS.NORM to be a norm")
        res5.add_module("norm", layer)
        return parts


def register_heads() -> None:
    """Make the heads known to yaml files; one that another program registered first stays."""
    if Res5ROIHeadsExtraNorm.__name__ not in ROI_HEADS_REGISTRY:
        ROI_HEADS_REGISTRY.register(Res5ROIHeadsExtraNorm)
