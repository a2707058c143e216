"""ROIAlign on the CPU as one sparse matrix: forward and backward.

He et al. 2017, section 3. A region is an axis-aligned box and bilinear interpolation is a product
of one factor in y and one in x, so a bin is the sum of few cells with weights: a row of a sparse
matrix over the cells of all maps. The forward sums each row's cells, the backward each column's
bins. The numbers are those of torchvision's ``roi_align``, whose CPU kernels take one value of one
channel at a time.

Letters: N images, C channels, H x W map, P regions, S x T bins of a region, G samples a bin,
K cells that a bin takes of an axis.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional as F

from moco_det.standalone.precision import at_least_float32


@dataclass(frozen=True)
class Axis:
    """Interpolation along one axis: bin (P, S) takes cells first, first + 1, ... with weights.

    weights (P, S, K) are zero from a region's ``count`` (P,) on; size (P,) is that of the map.
    """

    first: Tensor
    weights: Tensor
    count: Tensor
    size: Tensor

    def every(self, step: int) -> Axis:
        """Each ``step``-th bin alone."""
        return Axis(self.first[:, ::step], self.weights[:, ::step], self.count, self.size)

    def cells(self, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Cells and weights (p, S, k) of some regions; what lies beyond the map weighs nothing."""
        cells = self.first[rows][:, :, None] + torch.arange(k)
        weights = self.weights[rows, :, :k]
        weights = F.pad(weights, (0, k - weights.shape[2]))
        return torch.minimum(cells, self.size[rows][:, None, None] - 1), weights


def axis_of(
    low: Tensor, high: Tensor, size: Tensor, *, bins: int, sampling_ratio: int, aligned: bool
) -> Axis:
    """Weights of regions that span ``low`` .. ``high`` (P,) in the pixels of maps of ``size`` (P,).

    With ``sampling_ratio`` 0 a bin has as many samples as it has pixels, rounded up. A sample
    further than a pixel outside counts as 0; one nearer is moved onto the border.
    """
    if aligned:
        low, length = low - 0.5, high - low
    else:
        length = (high - low).clamp(min=1.0)
    bin_size = length / bins
    if sampling_ratio > 0:
        samples = torch.full_like(length, float(sampling_ratio))
    else:
        samples = bin_size.ceil()
    most = max(int(samples.max()), 1) if len(samples) else 1
    divisor = samples.clamp(min=1)[:, None, None]
    sample = torch.arange(most)
    bin_ = torch.arange(bins)[:, None]
    inside_bin = (sample + 0.5) * (bin_size[:, None, None] / divisor)
    place = low[:, None, None] + bin_ * bin_size[:, None, None] + inside_bin  # P, S, G
    limit = size[:, None, None]
    real = (sample < samples[:, None, None]) & (place >= -1.0) & (place <= limit)
    place = torch.minimum(place.clamp(min=0), limit - 1.0)
    floor = place.floor()
    share = torch.where(real, 1.0 / divisor, 0.0)
    first = floor[:, :, 0].long()  # the lowest sample's
    lower = torch.where(real, floor.long() - first[:, :, None], 0)
    upper = torch.minimum(lower + 1, limit - 1 - first[:, :, None])
    upper = torch.where(real, upper, 0)
    count = upper.flatten(1).amax(dim=1) + 1 if len(low) else size
    weights = low.new_zeros(len(low), bins, int(count.max()) if len(low) else 1)
    weights.scatter_add_(2, lower, share * (1 - (place - floor)))
    weights.scatter_add_(2, upper, share * (place - floor))
    return Axis(first, weights, count, size)


@dataclass(frozen=True)
class Taps:
    """The sparse matrix: bin i has weights[starts[i] : starts[i + 1]] at the same of ``cells``.

    Bins are those of the regions in the order of ``order`` (P,).
    """

    order: Tensor
    cells: Tensor
    weights: Tensor
    starts: Tensor


def taps_of(base: Tensor, y: Axis, x: Axis) -> Taps:
    """The matrix of regions whose images begin at the cells ``base`` (P,).

    Regions that take as many cells a bin are done together.
    """
    bins = y.first.shape[1] * x.first.shape[1]
    count = torch.maximum(y.count, x.count)  # P
    order, cells, weights = [count[:0]], [count[:0].int()], [y.weights.new_zeros(0)]
    for k in count.unique().tolist():
        rows = (count == k).nonzero(as_tuple=True)[0]
        (at_y, by_y), (at_x, by_x) = y.cells(rows, k), x.cells(rows, k)
        at_y = base[rows][:, None, None] + at_y * x.size[rows][:, None, None]
        # p, S, 1, K * K and p, 1, T, K * K
        at_y, by_y = (t.repeat_interleave(k, dim=2)[:, :, None] for t in (at_y, by_y))
        at_x, by_x = (t.repeat(1, 1, k)[:, None] for t in (at_x, by_x))
        cells.append((at_y.int() + at_x.int()).flatten())
        weights.append((by_y * by_x).flatten())
        order.append(rows)
    together = torch.cat(order)
    lengths = (count[together] ** 2).repeat_interleave(bins)
    starts = F.pad(lengths.cumsum(0), (1, 0)).int()
    return Taps(together, torch.cat(cells), torch.cat(weights), starts)


class _Pool(torch.autograd.Function):
    """Maps (N, C, H, W) to (P, S * T, C), the bins of all regions."""

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # in 8 bits a sample would lie elsewhere
    def forward(ctx: Any, taps: Taps, bins: int, *maps: Tensor) -> Tensor:
        dtype = taps.weights.dtype
        cells = torch.cat([rows(feature).to(dtype) for feature in maps])
        ctx.taps, ctx.shapes, ctx.dtype = taps, [f.shape for f in maps], maps[0].dtype
        pooled = bags(taps.cells, cells, taps.starts[:-1], taps.weights)
        pooled = pooled.to(ctx.dtype).view(-1, bins, cells.shape[1])
        return pooled.index_select(0, taps.order.argsort())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        taps: Taps = ctx.taps
        gradient = at_least_float32(gradients[0].index_select(0, taps.order)).flatten(0, 1)
        counts = [n * h * w for n, _, h, w in ctx.shapes]
        matrix = csr_matrix(
            (taps.weights.numpy(), taps.cells.numpy(), taps.starts.numpy()),
            shape=(len(gradient), sum(counts)),
        ).tocsc()
        parts = (matrix.indices, matrix.indptr[:-1], matrix.data)
        at, starts, weights = (torch.from_numpy(part) for part in parts)
        cells = bags(at, gradient, starts, weights).to(ctx.dtype).split(counts)
        results = [
            part.view(n, h, w, -1).permute(0, 3, 1, 2)
            for part, (n, _, h, w) in zip(cells, ctx.shapes, strict=True)
        ]
        return (None, None, *results)


def rows(feature: Tensor) -> Tensor:
    """A map (N, C, H, W) as (N * H * W, C)."""
    return feature.permute(0, 2, 3, 1).flatten(0, 2)


def bags(at: Tensor, table: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Sums of weighted rows of a table, one sum from each of ``starts`` to the next."""
    return F.embedding_bag(at, table, starts, mode="sum", per_sample_weights=weights)


def pool(maps: Sequence[Tensor], base: Tensor, y: Axis, x: Axis) -> Tensor:
    """Regions of maps (N, C, H, W), as ``axes_of`` describes them, to (P, C, S, T).

    Computed in the axes' format, float32 at least, and returned in the maps' format, channels last.
    """
    bins = y.first.shape[1], x.first.shape[1]
    pooled: Tensor = _Pool.apply(taps_of(base, y, x), bins[0] * bins[1], *maps)
    return pooled.unflatten(1, bins).permute(0, 3, 1, 2)


def axes_of(
    rois: Tensor,
    maps: Sequence[Tensor],
    levels: Tensor,
    *,
    output_size: int,
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> tuple[Tensor, Axis, Axis]:
    """Base (P,), y axis and x axis of rois (P, 5: image, xyxy), each in its map of ``levels`` (P,).

    A region's base is the first cell of its image in its map, counted over the cells of all maps.
    """
    sides = torch.tensor([feature.shape[2:] for feature in maps])[levels]  # P, 2
    areas = [feature.shape[2] * feature.shape[3] for feature in maps]
    before = [0, *itertools.accumulate(f.shape[0] * a for f, a in zip(maps, areas, strict=True))]
    base = torch.tensor(before)[levels] + rois[:, 0].long() * torch.tensor(areas)[levels]
    x0, y0, x1, y1 = (rois[:, 1:] * rois.new_tensor(scales)[levels, None]).unbind(dim=1)
    y, x = (
        axis_of(low, high, size, bins=output_size, sampling_ratio=sampling_ratio, aligned=aligned)
        for low, high, size in ((y0, y1, sides[:, 0]), (x0, x1, sides[:, 1]))
    )
    return base, y, x
