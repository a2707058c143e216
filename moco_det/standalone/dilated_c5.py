"""The R50-dilated-C5 backbone of the MoCo paper (appendix A.1)."""

from __future__ import annotations

from torch import Tensor, nn

from moco_det.resnet.layers import Conv2d, msra_fill
from moco_det.resnet.network import ResNet


class DilatedC5(nn.Module):
    """A ResNet whose res5 has dilation 2 and stride 1, then a 3x3 convolution with its norm.

    The paper reduces the 2048 channels to 512 by "a 3x3 convolution (with BN)"; it does not say
    whether a ReLU follows. Here one does: without it the convolution and the first fc layer of
    the box head would be two linear maps in a row. One feature comes out, ``res5``, at stride 16.
    """

    size_divisibility = 1

    def __init__(self, bottom_up: ResNet, *, out_channels: int, norm: str) -> None:
        super().__init__()
        if bottom_up.out_features != ("res5",):
            raise ValueError(
                f"a dilated C5 takes MODEL.RESNETS.OUT_FEATURES ['res5'], not "
                f"{list(bottom_up.out_features)}"
            )
        if bottom_up.strides["res5"] != 16:
            raise ValueError("a dilated C5 needs MODEL.RESNETS.RES5_DILATION 2")
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
