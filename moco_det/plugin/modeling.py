"""What the MoCo papers' detectors need in detectron2's registries: R50-dilated-C5, C4's head with a
norm, narrow ResNet-18 and -34, networks of timm."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    FPN,
    ROI_HEADS_REGISTRY,
    Backbone,
    ResNet,
    build_resnet_backbone,
)
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem
from detectron2.modeling.roi_heads import Res5ROIHeads
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn
from torch.nn import functional as F

from moco_det.resnet.architectures import BLOCKS
from moco_det.settings.config import set_values
from moco_det.timm_backbones.network import TimmBackbone
from moco_det.timm_backbones.simple_pyramid import SimplePyramid

BASIC_BLOCKS = {depth: BLOCKS[depth] for depth in (18, 34)}
# detectron2's builder -> the one that takes its place for a narrow ResNet-18 or -34
ANY_WIDTH = {
    "build_resnet_backbone": "build_basic_resnet_backbone",
    "build_resnet_fpn_backbone": "build_basic_resnet_fpn_backbone",
}


class DilatedC5Backbone(Backbone):
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

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) to {"res5": (N, out_channels, H / 16, W / 16)}."""
        return {"res5": self.reduce(self.bottom_up(x)["res5"])}


def build_resnet_dilated_c5_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DilatedC5Backbone:
    """The backbone that MODEL.RESNETS and MODEL.DILATED_C5 describe."""
    return DilatedC5Backbone(
        build_resnet_backbone(cfg, input_shape),
        out_channels=cfg.MODEL.DILATED_C5.OUT_CHANNELS,
        norm=cfg.MODEL.DILATED_C5.NORM,
    )


def basic_stage(cfg: CfgNode, index: int) -> list[BasicBlock]:
    """The blocks of res2 (index 0) to res5 (3) of a ResNet-18 or -34."""
    resnets = cfg.MODEL.RESNETS
    blocks = BASIC_BLOCKS[resnets.DEPTH][index]
    channels = resnets.RES2_OUT_CHANNELS * 2**index
    stage: list[BasicBlock] = ResNet.make_stage(
        BasicBlock,
        blocks,
        stride_per_block=[1 if index == 0 else 2] + [1] * (blocks - 1),
        in_channels=resnets.STEM_OUT_CHANNELS if index == 0 else channels // 2,
        out_channels=channels,
        norm=resnets.NORM,
    )
    return stage


def build_basic_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """A ResNet-18 or -34 of any width; detectron2's own builder refuses all but 64 channels."""
    resnets = cfg.MODEL.RESNETS
    if resnets.RES5_DILATION != 1 or any(resnets.DEFORM_ON_PER_STAGE):
        raise ValueError("ResNet-18 and -34 have neither dilation nor deformable convolutions")
    stem = BasicStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, resnets.NORM)
    return ResNet(
        stem,
        [basic_stage(cfg, index) for index in range(4)],
        out_features=resnets.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


def build_basic_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The same below an FPN."""
    return pyramid(cfg, build_basic_resnet_backbone(cfg, input_shape))


def pyramid(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    return FPN(
        bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


class Described(Backbone):
    """A part of ours that knows its `strides` and `channels`, as detectron2 asks for them."""

    strides: dict[str, int]
    channels: dict[str, int]

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self.channels[name], stride=stride)
            for name, stride in self.strides.items()
        }


class TimmD2Backbone(TimmBackbone, Described):
    """A network of timm as detectron2's FPN takes it."""


class SimpleD2Pyramid(SimplePyramid, Described):
    """The simple pyramid as detectron2's detectors take it."""


def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN | SimpleD2Pyramid:
    """The network that MODEL.TIMM describes, below an FPN or, a plain ViT, the simple pyramid."""
    timm = cfg.MODEL.TIMM
    bottom_up = TimmD2Backbone(
        timm.NAME,
        drop_path=timm.DROP_PATH,
        norm=timm.NORM,
        window=timm.WINDOW,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
    if bottom_up.plain:
        fpn = cfg.MODEL.FPN
        return SimpleD2Pyramid(bottom_up, out_channels=fpn.OUT_CHANNELS, norm=fpn.NORM)
    return pyramid(cfg, bottom_up)


def any_width(cfg: CfgNode) -> CfgNode:
    """The config with the builder that has narrow ResNet-18 and -34, where it asks for one."""
    resnets, name = cfg.MODEL.RESNETS, ANY_WIDTH.get(cfg.MODEL.BACKBONE.NAME)
    if name is None or resnets.DEPTH not in BASIC_BLOCKS or resnets.RES2_OUT_CHANNELS == 64:
        return cfg
    return set_values(cfg, ["MODEL.BACKBONE.NAME", name])


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


def register_parts() -> None:
    """Make all this known to yaml files; what another program registered first stays."""
    for registry, part in (
        (BACKBONE_REGISTRY, build_resnet_dilated_c5_backbone),
        (BACKBONE_REGISTRY, build_basic_resnet_backbone),
        (BACKBONE_REGISTRY, build_basic_resnet_fpn_backbone),
        (BACKBONE_REGISTRY, build_timm_fpn_backbone),
        (ROI_HEADS_REGISTRY, Res5ROIHeadsExtraNorm),
    ):
        if part.__name__ not in registry:
            registry.register(part)
