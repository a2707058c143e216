"""ViTDet's simple feature pyramid over a plain ViT.

Source: Li et al., Exploring Plain Vision Transformer Backbones for Object Detection (2022),
Section 3.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from moco_det.foundation.errors import InputError
from moco_det.timm_backbones.network import TimmBackbone


class SimplePyramid(nn.Module):
    """A plain ViT's last feature, of stride 16, to "p2" .. "p6" at strides 4 to 64.

    Two transposed convolutions lead to stride 4, one to 8 and a pooling to 32; a 1x1 and a 3x3
    convolution follow, each with a LayerNorm over channels; "p6" is "p5" subsampled by two.
    InputError for another `norm`, which an FPN would take.
    """

    size_divisibility = 32

    def __init__(self, bottom_up: TimmBackbone, *, out_channels: int, norm: str) -> None:
        super().__init__()
        if norm:
            raise InputError(
                f"MODEL.FPN.NORM {norm}: a plain ViT's pyramid has LayerNorms of its own: set ''"
            )
        from timm.layers import LayerNorm2d

        def doubled(width: int) -> nn.ConvTranspose2d:
            return nn.ConvTranspose2d(width, width // 2, 2, stride=2)

        width = bottom_up.channels["last"]
        scalings: dict[int, tuple[int, list[nn.Module]]] = {
            2: (
                width // 4,
                [doubled(width), LayerNorm2d(width // 2), nn.GELU(), doubled(width // 2)],
            ),
            3: (width // 2, [doubled(width)]),
            4: (width, []),
            5: (width, [nn.MaxPool2d(2)]),
        }
        for level, (channels, scaling) in scalings.items():
            layers = nn.Sequential(
                *scaling,
                nn.Conv2d(channels, out_channels, 1, bias=False),
                LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels),
            )
            self.add_module(f"simfp_{level}", layers)
        self.bottom_up = bottom_up
        self.strides = {f"p{level}": 2**level for level in range(2, 7)}
        self.channels = dict.fromkeys(self.strides, out_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W), sides divisible by 32, to p2 .. p6."""
        last = self.bottom_up(x)["last"]
        outputs = {f"p{level}": self.get_submodule(f"simfp_{level}")(last) for level in range(2, 6)}
        outputs["p6"] = F.max_pool2d(outputs["p5"], kernel_size=1, stride=2)
        return outputs
