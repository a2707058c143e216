"""ROIAlign over small maps as one sparse matrix: forward and backward.

A bin is the sum of few cells with weights: a row of a sparse matrix over the cells of all maps. The
forward sums each row's cells, the backward each column's bins. Where all maps lie in the
processor's cache that takes a third of the time of two matrix products per region; where they do
not, the cells would be fetched from memory again for every bin.

Letters: N images, C channels, H x W map, P regions, S x T bins of a region, K cells that a bin
takes of an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional as F

from moco_det.foundation.precision import at_least_float32

if TYPE_CHECKING:
    from moco_det.standalone.roi_align import Axis, Part


@dataclass(frozen=True)
class Taps:
    """The sparse matrix: bin i has weights[starts[i] : starts[i + 1]] at the same of ``cells``.

    Bins are those of the regions in the order of ``order`` (P,).
    """

    order: Tensor
    cells: Tensor
    weights: Tensor
    starts: Tensor


def taps_of(parts: Sequence[Part], maps: Sequence[Tensor]) -> Taps:
    """The matrix of all regions; those that take as many cells a bin are done together."""
    order, cells, weights, lengths = [], [], [], []
    before = 0  # cells of the maps so far
    for part, (images, _, height, width) in zip(parts, [m.shape for m in maps], strict=True):
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
    return Taps(torch.cat(order), torch.cat(cells), torch.cat(weights), starts)


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


class PoolSparsely(torch.autograd.Function):
    """Maps (N, C, H, W), each with its part of P regions, to (P, C, S, T)."""

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # in 8 bits a sample would lie elsewhere
    def forward(ctx: Any, parts: Sequence[Part], *maps: Tensor) -> Tensor:
        bins = parts[0].y.weights.shape[1], parts[0].x.weights.shape[1]
        taps = taps_of(parts, maps)
        tables = [feature.permute(0, 2, 3, 1).flatten(0, 2) for feature in maps]
        cells = torch.cat([table.to(taps.weights.dtype) for table in tables])
        ctx.taps, ctx.shapes, ctx.dtype = taps, [f.shape for f in maps], maps[0].dtype
        pooled = bags(taps.cells, cells, taps.starts[:-1], taps.weights).to(ctx.dtype)
        pooled = pooled.view(-1, *bins, cells.shape[1])
        return pooled.index_select(0, taps.order.argsort()).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        taps: Taps = ctx.taps
        gradient = gradients[0].permute(0, 2, 3, 1).index_select(0, taps.order)  # P, S, T, C
        gradient = at_least_float32(gradient).flatten(0, 2)
        counts = [n * h * w for n, _, h, w in ctx.shapes]
        matrix = csr_matrix(
            (taps.weights.numpy(), taps.cells.numpy(), taps.starts.numpy()),
            shape=(len(gradient), sum(counts)),
        ).tocsc()
        columns = (matrix.indices, matrix.indptr[:-1], matrix.data)
        at, starts, weights = (torch.from_numpy(part) for part in columns)
        cells = bags(at, gradient, starts, weights).to(ctx.dtype).split(counts)
        results = [
            part.view(n, h, w, -1).permute(0, 3, 1, 2)
            for part, (n, _, h, w) in zip(cells, ctx.shapes, strict=True)
        ]
        return (None, *results)


def bags(at: Tensor, table: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Sums of weighted rows of a table, one sum from each of ``starts`` to the next."""
    return F.embedding_bag(at, table, starts, mode="sum", per_sample_weights=weights)
