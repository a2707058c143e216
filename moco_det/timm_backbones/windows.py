"""Attention within windows for a plain ViT.

Source: Li et al., Exploring Plain Vision Transformer Backbones for Object Detection (2022),
Section 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moco_det.foundation.errors import InputError


def quarter_ends(blocks: int) -> list[int]:
    """The last block of each quarter of them."""
    return [blocks * n // 4 - 1 for n in (1, 2, 3, 4)]


class Windows:
    """Makes all blocks of a ViT but the last of each quarter attend within windows.

    A window has `side` x `side` patches.

    Cells that fill the last windows are zeros, as in ViTDet. Class and register tokens, which
    ViTDet has none of, take part in every window; of what becomes of them there the mean goes on.
    """

    def __init__(self, network: Any, side: int) -> None:
        self.side = side
        self.prefix = int(network.num_prefix_tokens)
        self.grid = (0, 0)  # patches of the image in work
        whole = quarter_ends(len(network.blocks))
        for number, block in enumerate(network.blocks):
            if not isinstance(getattr(block, "attn", None), nn.Module):
                raise InputError("MODEL.TIMM.WINDOW: blocks of this network have no windows: set 0")
            if number not in whole:
                block.attn.register_forward_pre_hook(self.split, with_kwargs=True)
                block.attn.register_forward_hook(self.join)

    def split(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Tokens (B, prefix + cells, C) to (B * windows, prefix + side * side, C)."""
        tokens, *others = args
        cells = self.partition(tokens[:, self.prefix :])
        first = tokens[:, None, : self.prefix].expand(-1, cells.shape[1], -1, -1)
        rope = kwargs.get("rope")  # (cells, D), or one per head
        if rope is not None:
            own = self.partition(rope.reshape(-1, *rope.shape[-2:])).transpose(0, 1)
            kwargs = {**kwargs, "rope": own.repeat(len(tokens), 1, 1, 1)}
        return (torch.cat([first, cells], dim=2).flatten(0, 1), *others), kwargs

    def join(self, _: nn.Module, args: Any, output: Tensor) -> Tensor:
        """The inverse of `split`."""
        (height, width), side = self.grid, self.side
        down, right = -(-height // side), -(-width // side)
        windows = output.unflatten(0, (-1, down * right))
        first = windows[:, :, : self.prefix].mean(dim=1)
        cells = windows[:, :, self.prefix :].reshape(-1, down, right, side, side, output.shape[-1])
        cells = cells.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :height, :width]
        return torch.cat([first, cells.flatten(1, 2)], dim=1)

    def partition(self, cells: Tensor) -> Tensor:
        """(B, height * width, C) to (B, windows, side * side, C)."""
        side = self.side
        x = cells.unflatten(1, self.grid)
        x = F.pad(x, (0, 0, 0, -self.grid[1] % side, 0, -self.grid[0] % side))
        x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)
        return x.flatten(3, 4).flatten(1, 2)
