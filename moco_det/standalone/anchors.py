"""Anchors: boxes of every size and shape at every cell of every feature map."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    """Anchors (A, 4) around the origin; size is the root of the area, ratio height / width."""
    rows = []
    for size, ratio in itertools.product(sizes, aspect_ratios):
        width = math.sqrt(size**2.0 / ratio)
        height = ratio * width
        rows.append([-width / 2.0, -height / 2.0, width / 2.0, height / 2.0])
    return torch.tensor(rows)


@dataclass(eq=False)
class AnchorGenerator:
    """Anchors of several feature maps.

    ``sizes`` and ``aspect_ratios`` hold one list per feature map, or one list for all of them.
    ``offset`` in [0, 1) places the first anchor's centre at ``offset * stride``.
    """

    sizes: Sequence[Sequence[float]]
    aspect_ratios: Sequence[Sequence[float]]
    strides: Sequence[int]
    offset: float

    def __post_init__(self) -> None:
        levels = len(self.strides)
        sizes, ratios = (
            list(lists) * (levels if len(lists) == 1 else 1)
            for lists in (self.sizes, self.aspect_ratios)
        )
        if len(sizes) != levels or len(ratios) != levels:
            raise ValueError(
                f"{len(sizes)} lists of anchor sizes and {len(ratios)} of aspect ratios "
                f"for {levels} feature maps"
            )
        self.cells = [cell_anchors(s, r) for s, r in zip(sizes, ratios, strict=True)]
        # the largest made so far of each level, of which smaller maps take a corner
        self.grids: dict[tuple[int, torch.device], Tensor] = {}

    @property
    def per_cell(self) -> list[int]:
        """Number of anchors at one cell of each feature map."""
        return [len(cell) for cell in self.cells]

    def __call__(self, features: Sequence[Tensor]) -> list[Tensor]:
        """One (H * W * A, 4) float32 tensor per feature map, rows in the order y, x, anchor."""
        anchors = []
        for level, feature in enumerate(features):
            height, width = feature.shape[-2:]
            grid = self.grids.get((level, feature.device))
            if grid is None or grid.shape[0] < height or grid.shape[1] < width:
                least = (0, 0) if grid is None else grid.shape
                grid = self.grid(level, max(height, least[0]), max(width, least[1]))
                grid = self.grids[level, feature.device] = grid.to(feature.device)
            anchors.append(grid[:height, :width].reshape(-1, 4))
        return anchors

    def grid(self, level: int, height: int, width: int) -> Tensor:
        """Anchors (H, W, A, 4) of a feature map."""
        stride, start = self.strides[level], self.offset * self.strides[level]
        x = torch.arange(start, width * stride, stride, dtype=torch.float32)
        y = torch.arange(start, height * stride, stride, dtype=torch.float32)
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        shift = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1)
        return shift[:, :, None] + self.cells[level]
