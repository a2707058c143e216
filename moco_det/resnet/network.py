"""ResNet (He et al. 2016) in detectron2's parameter names.

Stages are called ``stem``, ``res2`` .. ``res5``. With ``stride_in_1x1=False`` the stride of a
bottleneck sits in its 3x3 convolution, as in torchvision and in every encoder trained here;
``True`` is the original MSRA placement.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from moco_det.resnet.architectures import Architecture
from moco_det.resnet.layers import Conv2d, FrozenBatchNorm2d, msra_fill

STAGES = ("res2", "res3", "res4", "res5")
FEATURES = ("stem", *STAGES)


class Stem(nn.Module):
    """7x7 convolution of stride 2, then 3x3 max pooling of stride 2: stride 4 in all."""

    def __init__(self, out_channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = Conv2d(3, out_channels, 7, stride=2, padding=3, norm=norm, relu=True)
        msra_fill(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class ResidualBlock(nn.Module):
    """Convolutions beside a shortcut, which is itself a convolution where the channels change."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: str) -> None:
        super().__init__()
        self.shortcut: Conv2d | None = None
        if in_channels != out_channels:
            self.shortcut = Conv2d(in_channels, out_channels, 1, stride=stride, norm=norm)

    def initialise(self) -> None:
        for layer in self.children():
            if isinstance(layer, nn.Conv2d):
                msra_fill(layer)

    def convolutions(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        out = self.convolutions(x)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out + shortcut)


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and -34)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: str) -> None:
        super().__init__(in_channels, out_channels, stride=stride, norm=norm)
        self.conv1 = Conv2d(
            in_channels, out_channels, 3, stride=stride, padding=1, norm=norm, relu=True
        )
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1, norm=norm)
        self.initialise()

    def convolutions(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class BottleneckBlock(ResidualBlock):
    """1x1, 3x3, 1x1 convolutions and a shortcut (ResNet-50 and deeper, ResNeXt, wide)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int,
        norm: str,
        num_groups: int,
        stride_in_1x1: bool,
        dilation: int,
    ) -> None:
        super().__init__(in_channels, out_channels, stride=stride, norm=norm)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        width = bottleneck_channels
        self.conv1 = Conv2d(in_channels, width, 1, stride=stride_1x1, norm=norm, relu=True)
        self.conv2 = Conv2d(
            width,
            width,
            3,
            stride=stride_3x3,
            padding=dilation,
            dilation=dilation,
            groups=num_groups,
            norm=norm,
            relu=True,
        )
        self.conv3 = Conv2d(width, out_channels, 1, norm=norm)
        self.initialise()

    def convolutions(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)))


def make_stage(
    stage: str,
    architecture: Architecture,
    *,
    norm: str,
    stride_in_1x1: bool,
    dilation: int = 1,
) -> nn.Sequential:
    """One of ``res2`` .. ``res5`` as blocks; ``res2`` and a dilated stage keep the resolution."""
    index = STAGES.index(stage)
    out_channels = architecture.res2_out_channels * 2**index
    in_channels = architecture.stem_out_channels if index == 0 else out_channels // 2
    stride = 1 if index == 0 or dilation > 1 else 2
    if not architecture.bottleneck and dilation != 1:
        raise ValueError("a dilated res5 needs bottleneck blocks: ResNet-50 or deeper")
    blocks: list[nn.Module] = []
    for _ in range(architecture.blocks[index]):
        if not architecture.bottleneck:
            blocks.append(BasicBlock(in_channels, out_channels, stride=stride, norm=norm))
        else:
            width = architecture.num_groups * architecture.width_per_group * 2**index
            blocks.append(
                BottleneckBlock(
                    in_channels,
                    out_channels,
                    bottleneck_channels=width,
                    stride=stride,
                    norm=norm,
                    num_groups=architecture.num_groups,
                    stride_in_1x1=stride_in_1x1,
                    dilation=dilation,
                )
            )
        in_channels, stride = out_channels, 1
    return nn.Sequential(*blocks)


class ResNet(nn.Module):
    """The backbone: image batch in, named feature maps out.

    Only the stages up to the last of ``out_features`` exist. ``freeze_at`` counts as in
    detectron2: 0 freezes nothing, 1 the stem, 2 the stem and ``res2``, and so on.
    """

    size_divisibility = 1  # any image size will do

    def __init__(
        self,
        architecture: Architecture,
        *,
        norm: str = "BN",
        out_features: Sequence[str] = FEATURES,
        stride_in_1x1: bool = False,
        res5_dilation: int = 1,
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        unknown = [name for name in out_features if name not in FEATURES]
        if unknown or not out_features:
            raise ValueError(f"out_features {list(out_features)}: choose from {list(FEATURES)}")
        last = max(FEATURES.index(name) for name in out_features)
        self.out_features = tuple(out_features)
        self.channels = {"stem": architecture.stem_out_channels}
        self.strides = {"stem": 4}
        self.stem = Stem(architecture.stem_out_channels, norm)
        self.parts = FEATURES[: last + 1]
        for index, name in enumerate(self.parts[1:]):
            dilation = res5_dilation if name == "res5" else 1
            stage = make_stage(
                name, architecture, norm=norm, stride_in_1x1=stride_in_1x1, dilation=dilation
            )
            self.add_module(name, stage)
            self.channels[name] = architecture.res2_out_channels * 2**index
            before = self.strides[FEATURES[index]]
            self.strides[name] = before * (1 if index == 0 or dilation > 1 else 2)
        self.freeze(freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) normalised images to {name: (N, C, H / stride, W / stride)}."""
        outputs: dict[str, Tensor] = {}
        for name in self.parts:
            x = self.get_submodule(name)(x)
            if name in self.out_features:
                outputs[name] = x
        return outputs

    def freeze(self, freeze_at: int) -> None:
        """Make the first ``freeze_at`` parts constants; their BN becomes FrozenBN."""
        for name in self.parts[:freeze_at]:
            freeze_module(self.get_submodule(name))


def freeze_module(module: nn.Module) -> None:
    """Stop gradients of every parameter below and replace BN by FrozenBN, in place."""
    for parameter in module.parameters():
        parameter.requires_grad = False
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                frozen = FrozenBatchNorm2d(child.num_features, child.eps)
                frozen.load_state_dict(child.state_dict(), strict=False)  # but for the counter
                parent.add_module(name, frozen)
