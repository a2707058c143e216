"""What stands over a network: a feature pyramid, or the MoCo paper's R50-dilated-C5."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from moco_det.resnet.layers import Conv2d, msra_fill, xavier_fill
from moco_det.resnet.network import ResNet
from moco_det.timm_backbones.network import TimmBackbone

# Each has `strides` and `channels` by feature name.
BottomUp = ResNet | TimmBackbone


class FPN(nn.Module):
    """Features ``res2`` .. ``res5`` to ``p2`` .. ``p6`` (Lin et al. 2017).

    ``p6`` is ``p5`` subsampled by two. With a norm (the MoCo paper puts BN into the newly added
    FPN layers) the pyramid's convolutions have no bias.
    """

    def __init__(
        self,
        bottom_up: BottomUp,
        *,
        in_features: Sequence[str],
        out_channels: int,
        norm: str,
        fuse_type: str,
    ) -> None:
        super().__init__()
        self.in_features = tuple(in_features)
        self.fuse_type = fuse_type
        levels = [int(math.log2(bottom_up.strides[name])) for name in in_features]
        if levels != list(range(levels[0], levels[0] + len(levels))):
            raise ValueError(f"FPN needs features of contiguous strides, not {list(in_features)}")
        self.levels = levels
        for name, level in zip(in_features, levels, strict=True):
            lateral = Conv2d(bottom_up.channels[name], out_channels, 1, norm=norm)
            output = Conv2d(out_channels, out_channels, 3, padding=1, norm=norm)
            xavier_fill(lateral)
            xavier_fill(output)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
        self.bottom_up = bottom_up
        self.strides = {f"p{level}": 2**level for level in [*levels, levels[-1] + 1]}
        self.channels = dict.fromkeys(self.strides, out_channels)
        self.size_divisibility = 2 ** levels[-1]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W), sides divisible by ``size_divisibility``, to p2 .. p6."""
        features = self.bottom_up(x)
        outputs: dict[str, Tensor] = {}
        top_down: Tensor | None = None
        for name, level in zip(reversed(self.in_features), reversed(self.levels), strict=True):
            merged = self.get_submodule(f"fpn_lateral{level}")(features[name])
            if top_down is not None:
                merged = merged + F.interpolate(top_down, scale_factor=2.0, mode="nearest")
                if self.fuse_type == "avg":
                    merged = merged / 2
            top_down = merged
            outputs[f"p{level}"] = self.get_submodule(f"fpn_output{level}")(merged)
        last = self.levels[-1]
        outputs[f"p{last + 1}"] = F.max_pool2d(outputs[f"p{last}"], kernel_size=1, stride=2)
        return outputs


class DilatedC5(nn.Module):
    """A ResNet whose res5 has dilation 2 and stride 1, then a 3x3 convolution with its norm.

    The paper (appendix A.1) reduces the 2048 channels to 512 by "a 3x3 convolution (with BN)"; it
    does not say whether a ReLU follows. Here one does: without it the convolution and the first fc
    layer of the box head would be two linear maps in a row. One feature comes out, ``res5``, at
    stride 16.
    """

    size_divisibility = 1

    def __init__(self, bottom_up: ResNet, *, out_channels: int, norm: str) -> None:
        super().__init__()
        if bottom_up.out_features != ("res5",) or bottom_up.strides["res5"] != 16:
            raise ValueError(
                "a dilated C5 needs MODEL.RESNETS.OUT_FEATURES ['res5'] and RES5_DILATION 2"
            )
        self.bottom_up = bottom_up
        self.reduce = Conv2d(
            bottom_up.channels["res5"], out_channels, 3, padding=1, norm=norm, relu=True
        )
        msra_fill(self.reduce)
        self.strides = {"res5": 16}
        self.channels = {"res5": out_channels}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) to {"res5": (N, out_channels, H / 16, W / 16)}."""
        return {"res5": self.reduce(self.bottom_up(x)["res5"])}
