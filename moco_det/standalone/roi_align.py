"""ROIAlign, forward and backward: on a CPU as matrix products, on a GPU by `kernels`.

He et al. 2017, section 3. A region is an axis-aligned box and bilinear interpolation is a product
of one factor in y and one in x. The numbers are those of torchvision's ``roi_align``, whose CPU
backward adds one value at a time. On a CPU large maps are pooled by two thin matrix products per
region, ``Wy F Wx^T``, over the part of the map below it. Small maps are pooled by one sparse
matrix, a row per bin over the cells of all maps: where these lie in the processor's cache that
takes a third to two thirds of the time, and where they do not, every bin would fetch them again.

Letters: N images, C channels, H x W map, P regions, S x T bins of a region, G samples per bin, K
cells that a bin takes of an axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from moco_det.foundation.precision import at_least_float32
from moco_det.standalone.boxes import area
from moco_det.standalone.fixed_size import has_kernels, is_fixed, off_the_map

# Small maps have so few channels, and so few numbers in all (8 MiB in float32).
NARROW = 128
SMALL = 2**21


@dataclass(frozen=True)
class ROIPooler:
    """ROIAlign from the pyramid level that fits each box's size (FPN, equation 1)."""

    output_size: int
    strides: Sequence[int]
    sampling_ratio: int
    aligned: bool

    def __call__(self, maps: Sequence[Tensor], rois: Tensor, *, every: int = 1) -> Tensor:
        """L maps (N, C, H, W) and rois (P, 5: image, xyxy) to (P, C, S, S), in the maps' format.

        With ``every`` each of so many bins alone, in both directions. Computed in float32 at least.
        """
        levels = self.assign_levels(rois[:, 1:])
        if has_kernels(rois):
            from moco_det.standalone import kernels  # needs triton

            by_kernel: Tensor = kernels.ROIAlign.apply(self, every, rois, levels, *maps)
            return by_kernel
        if is_fixed(rois):
            return self.by_torchvision(maps, rois, levels)[:, :, ::every, ::every]
        return self.by_matrices(maps, rois, levels, every)

    def assign_levels(self, boxes: Tensor) -> Tensor:
        """Index (P,) of the map each box is pooled from: a 224-pixel box goes to stride 16."""
        lowest = int(math.log2(self.strides[0]))
        level = torch.floor(4 + torch.log2(area(boxes).sqrt() / 224 + 1e-8))
        highest = lowest + len(self.strides) - 1
        return level.clamp(lowest, highest).to(torch.int64) - lowest

    def by_torchvision(self, maps: Sequence[Tensor], rois: Tensor, levels: Tensor) -> Tensor:
        """On any device, with no result whose size depends on values.

        torchvision takes map and rois in one format, and in 8 or 11 bits a box of a large image
        lies pixels away from where it was: so in float32 at least.
        """

        def parts() -> Iterator[Tensor]:
            size = (self.output_size, self.output_size)
            for level, (feature, stride) in enumerate(zip(maps, self.strides, strict=True)):
                wide = at_least_float32(feature)
                own = off_the_map(rois, levels != level).to(wide.dtype)
                yield roi_align(wide, own, size, 1.0 / stride, self.sampling_ratio, self.aligned)

        return reduce(torch.add, parts()).to(maps[0].dtype)

    def by_matrices(
        self, maps: Sequence[Tensor], rois: Tensor, levels: Tensor, every: int
    ) -> Tensor:
        """On a CPU, channels last."""
        parts = []
        for level, (feature, stride) in enumerate(zip(maps, self.strides, strict=True)):
            rows = (levels == level).nonzero(as_tuple=True)[0]
            own = rois[rows].to(torch.promote_types(feature.dtype, torch.float32))
            x0, y0, x1, y1 = (own[:, 1:] * (1.0 / stride)).unbind(dim=1)
            y = self.axis(y0, y1, feature.shape[2], every)
            x = self.axis(x0, x1, feature.shape[3], every)
            parts.append(Part(rows, own[:, 0].long(), y, x))
        small = maps[0].shape[1] <= NARROW and sum(feature.numel() for feature in maps) <= SMALL
        pooled: Tensor = (_PoolSparsely if small and len(rois) else _PoolDensely).apply(
            parts, *maps
        )
        return pooled

    def axis(self, low: Tensor, high: Tensor, size: int, every: int) -> Axis:
        """Weights of regions that span ``low`` .. ``high`` (P,) in the map's pixels.

        With ``sampling_ratio`` 0 a bin has as many samples as it has pixels, rounded up. A sample
        further than a pixel outside counts as 0; one nearer is moved onto the border.
        """
        if self.aligned:
            low, length = low - 0.5, high - low
        else:
            length = (high - low).clamp(min=1.0)
        bin_size = length / self.output_size
        ratio = self.sampling_ratio
        count = torch.full_like(length, ratio) if ratio > 0 else bin_size.ceil()
        most = max(int(count.max()), 1) if len(count) else 1
        sample = torch.arange(most, device=low.device)
        bin_ = torch.arange(self.output_size, device=low.device)[:, None]
        inside_bin = (sample + 0.5) * (bin_size / count)[:, None, None]
        place = low[:, None, None] + bin_ * bin_size[:, None, None] + inside_bin  # P, S, G
        real = (sample < count[:, None, None]) & (place >= -1.0) & (place <= size)
        place = torch.where(real, place, 0.0).clamp(0, size - 1)
        floor = place.floor().clamp(max=size - 1)
        upper = (floor + 1).clamp(max=size - 1)
        share = torch.where(real, 1.0 / count.clamp(min=1)[:, None, None], 0.0)
        weights = low.new_zeros(len(low), self.output_size, size)
        weights.scatter_add_(2, floor.long(), share * (1 - (place - floor)))
        weights.scatter_add_(2, upper.long(), share * (place - floor))
        first = torch.where(real, floor, size).amin(dim=(1, 2)).long()
        last = torch.where(real, upper, -1).amax(dim=(1, 2)).long() + 1
        return Axis(weights[:, ::every], first, last)


class Axis(NamedTuple):
    """Interpolation along one axis: weights (P, S, size), zero outside first <= i < last (P,)."""

    weights: Tensor
    first: Tensor
    last: Tensor


class Part(NamedTuple):
    """The regions that one map pools: their rows (P,) in the result, image (P,) and axes."""

    rows: Tensor
    image: Tensor
    y: Axis
    x: Axis

    def windows(self) -> list[list[int]]:
        """Row, image and window (y0, y1, x0, x1) of every region."""
        columns = (self.rows, self.image, self.y.first, self.y.last, self.x.first, self.x.last)
        return torch.stack(columns, dim=1).tolist()


class _PoolDensely(torch.autograd.Function):
    """Maps (N, C, H, W), each with its part of P regions, to (P, C, S, T)."""

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # in 8 bits a sample would lie elsewhere
    def forward(ctx: Any, parts: Sequence[Part], *maps: Tensor) -> Tensor:
        bins = parts[0].y.weights.shape[1], parts[0].x.weights.shape[1]
        total = sum(len(part.rows) for part in parts)
        pooled = maps[0].new_empty(total, *bins, maps[0].shape[1], dtype=parts[0].y.weights.dtype)
        for part, feature in zip(parts, maps, strict=True):
            cells = feature.permute(0, 2, 3, 1).to(pooled.dtype).contiguous()  # N, H, W, C
            wy, wx = part.y.weights, part.x.weights
            for p, (row, n, y0, y1, x0, x1) in enumerate(part.windows()):
                if y0 >= y1 or x0 >= x1:
                    pooled[row].zero_()
                    continue
                window = cells[n, y0:y1, x0:x1].flatten(1)  # h, w * C
                strips = (wy[p, :, y0:y1] @ window).view(bins[0], x1 - x0, -1)  # S, w, C
                torch.bmm(wx[p, :, x0:x1].expand(bins[0], -1, -1), strips, out=pooled[row])
        ctx.parts, ctx.shapes, ctx.dtype = parts, [f.shape for f in maps], maps[0].dtype
        return pooled.permute(0, 3, 1, 2).to(maps[0].dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = at_least_float32(gradients[0].permute(0, 2, 3, 1)).contiguous()  # P, S, T, C
        results: list[Tensor | None] = [None]
        for part, (n_all, channels, height, width) in zip(ctx.parts, ctx.shapes, strict=True):
            cells = gradient.new_zeros(n_all, height, width, channels)
            wy, wx = part.y.weights, part.x.weights
            for p, (row, n, y0, y1, x0, x1) in enumerate(part.windows()):
                if y0 < y1 and x0 < x1:
                    strips = wx[p, :, x0:x1].T @ gradient[row]  # S, w, C
                    window = cells[n, y0:y1, x0:x1].flatten(1)  # a view: its rows are whole
                    window.addmm_(wy[p, :, y0:y1].T, strips.flatten(1))
            results.append(cells.permute(0, 3, 1, 2).to(ctx.dtype))
        return tuple(results)


class _PoolSparsely(torch.autograd.Function):
    """The same: the forward sums each bin's cells, the backward each cell's bins."""

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, parts: Sequence[Part], *maps: Tensor) -> Tensor:
        ctx.shapes, ctx.dtype = [f.shape for f in maps], maps[0].dtype
        ctx.order, ctx.matrix = sparse_matrix(parts, ctx.shapes)
        bins = parts[0].y.weights.shape[1], parts[0].x.weights.shape[1]
        cells = torch.cat([feature.permute(0, 2, 3, 1).flatten(0, 2) for feature in maps])
        pooled = product(ctx.matrix, cells.to(parts[0].y.weights.dtype)).to(ctx.dtype)
        pooled = pooled.view(-1, *bins, cells.shape[1])
        return pooled.index_select(0, ctx.order.argsort()).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].permute(0, 2, 3, 1).index_select(0, ctx.order)  # P, S, T, C
        cells = product(ctx.matrix.tocsc(), at_least_float32(gradient).flatten(0, 2))
        parts = cells.to(ctx.dtype).split([n * h * w for n, _, h, w in ctx.shapes])
        results = [
            part.view(n, h, w, -1).permute(0, 3, 1, 2)
            for part, (n, _, h, w) in zip(parts, ctx.shapes, strict=True)
        ]
        return (None, *results)


def product(matrix: Any, table: Tensor) -> Tensor:
    """Rows of a CSR matrix, or columns of a CSC matrix, times a table (cells, C)."""
    columns = (matrix.indices, matrix.indptr[:-1], matrix.data)
    at, starts, weights = (torch.from_numpy(column) for column in columns)
    return F.embedding_bag(at, table, starts, mode="sum", per_sample_weights=weights)


def sparse_matrix(parts: Sequence[Part], shapes: Sequence[torch.Size]) -> tuple[Tensor, Any]:
    """The order of the regions (P,), and in it the CSR matrix of their bins over all cells.

    Regions that take as many cells per bin are done together.
    """
    order, cells, weights, lengths = [], [], [], []
    before = 0  # cells of the maps so far
    for part, (images, _, height, width) in zip(parts, shapes, strict=True):
        (first_y, count_y), (first_x, count_x) = extent(part.y), extent(part.x)
        count = torch.maximum(count_y, count_x)
        base = before + part.image * (height * width)
        for k in count.unique().tolist():
            some = (count == k).nonzero(as_tuple=True)[0]
            at_y, by_y = few(part.y, first_y, some, k)
            at_x, by_x = few(part.x, first_x, some, k)
            at_y = base[some][:, None, None] + at_y * width
            # p, S, 1, K * K and p, 1, T, K * K
            at_y, by_y = (t.repeat_interleave(k, dim=2)[:, :, None] for t in (at_y, by_y))
            at_x, by_x = (t.repeat(1, 1, k)[:, None] for t in (at_x, by_x))
            found = at_y.int() + at_x.int()
            cells.append(found.flatten())
            weights.append((by_y * by_x).flatten())
            lengths.append(torch.full(found.shape[:3], k * k).flatten())
            order.append(part.rows[some])
        before += images * height * width
    starts = F.pad(torch.cat(lengths).cumsum(0), (1, 0)).int()
    columns = (torch.cat(weights).numpy(), torch.cat(cells).numpy(), starts.numpy())
    return torch.cat(order), csr_matrix(columns, shape=(len(starts) - 1, before))


def extent(axis: Axis) -> tuple[Tensor, Tensor]:
    """The first cell of each bin (P, S) and the most cells of a region's bins (P,), at least 1."""
    used = (axis.weights != 0).byte()
    first = used.argmax(dim=2)
    last = used.shape[2] - 1 - used.flip(2).argmax(dim=2)
    return first, torch.where(used.any(dim=2).bool(), last - first + 1, 1).amax(dim=1)


def few(axis: Axis, first: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cells and weights (p, S, k) of some regions; what lies beyond the map weighs nothing."""
    weights, cells = axis.weights[rows], first[rows][:, :, None] + torch.arange(k)
    size = weights.shape[2]
    inside = cells.clamp(max=size - 1)
    return inside, weights.gather(2, inside) * (cells < size)
