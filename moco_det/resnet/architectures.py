"""The ResNets that can be converted and trained, as numbers; no torch."""

from __future__ import annotations

from dataclasses import dataclass

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


@dataclass(frozen=True)
class Architecture:
    """The numbers that fix every tensor's shape, named as detectron2's MODEL.RESNETS keys are.

    `width_per_group` is that of res2's 3x3 convolutions; basic blocks leave it at 64.
    """

    blocks: tuple[int, ...]  # of res2 to res5
    bottleneck: bool = True
    num_groups: int = 1
    width_per_group: int = 64
    stem_out_channels: int = 64
    res2_out_channels: int = 256

    @property
    def keys(self) -> dict[str, int]:
        """The config keys that make a detector's ResNet this one."""
        return {
            "MODEL.RESNETS.DEPTH": 2 + sum(self.blocks) * (3 if self.bottleneck else 2),
            "MODEL.RESNETS.NUM_GROUPS": self.num_groups,
            "MODEL.RESNETS.WIDTH_PER_GROUP": self.width_per_group,
            "MODEL.RESNETS.STEM_OUT_CHANNELS": self.stem_out_channels,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": self.res2_out_channels,
        }

    def __str__(self) -> str:
        block = "bottleneck" if self.bottleneck else "basic"
        blocks = "-".join(map(str, self.blocks))
        groups = "1 group" if self.num_groups == 1 else f"{self.num_groups} groups"
        factor = self.stem_out_channels / 64
        width = int(self.width_per_group / factor) if self.bottleneck else 64
        wide = f", all channels {factor:g}x" if factor != 1 else ""
        return f"{block} blocks {blocks}, {groups} of width {width}{wide}"


ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": Architecture(BLOCKS[18], False, 1, 64, 64, 64),
    "resnet34": Architecture(BLOCKS[34], False, 1, 64, 64, 64),
    "resnet50": Architecture(BLOCKS[50]),
    "resnet101": Architecture(BLOCKS[101]),
    "resnet152": Architecture(BLOCKS[152]),
    "resnext50_32x4d": Architecture(BLOCKS[50], True, 32, 4),
    "resnext50_32x8d": Architecture(BLOCKS[50], True, 32, 8),
    "resnext101_32x4d": Architecture(BLOCKS[101], True, 32, 4),
    "resnext101_32x8d": Architecture(BLOCKS[101], True, 32, 8),
    "resnext101_64x4d": Architecture(BLOCKS[101], True, 64, 4),
    "wide_resnet50_2": Architecture(BLOCKS[50], True, 1, 128),
    "wide_resnet101_2": Architecture(BLOCKS[101], True, 1, 128),
    # every layer half and a quarter as wide
    "resnet18_w0.5x": Architecture(BLOCKS[18], False, 1, 64, 32, 32),
    "resnet18_w0.25x": Architecture(BLOCKS[18], False, 1, 64, 16, 16),
    "resnet34_w0.5x": Architecture(BLOCKS[34], False, 1, 64, 32, 32),
    "resnet34_w0.25x": Architecture(BLOCKS[34], False, 1, 64, 16, 16),
    "resnet50_w0.5x": Architecture(BLOCKS[50], True, 1, 32, 32, 128),
    "resnet50_w0.25x": Architecture(BLOCKS[50], True, 1, 16, 16, 64),
    # 2x and 4x as wide (MoCo paper, Table 1)
    "resnet50_w2x": Architecture(BLOCKS[50], True, 1, 128, 128, 512),
    "resnet50_w4x": Architecture(BLOCKS[50], True, 1, 256, 256, 1024),
}
