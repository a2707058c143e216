"""ROIAlign on the CPU as two small matrix products per region: forward and backward.

He et al. 2017, section 3. A region is an axis-aligned box and bilinear interpolation is a product
of one factor in y and one in x, so the S x T samples of a region are ``Wy F Wx^T`` with two thin
matrices. The numbers are those of torchvision's ``roi_align``, whose CPU backward adds one value
at a time; here both directions are matrix products over the part of the map below the region.
Small maps are pooled in another way: see ``roi_taps``.

Letters: N images, C channels, H x W map, P regions, S x T bins of a region, G samples a bin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moco_det.foundation.precision import at_least_float32
from moco_det.standalone.roi_taps import PoolSparsely

# Maps of so few channels, and so few numbers in all that they lie in a processor's cache (8 MiB in
# float32), are pooled by one sparse matrix, in a third to two thirds of the time.
NARROW = 128
SMALL = 2**21


@dataclass(frozen=True)
class Axis:
    """Interpolation along one axis: weights (P, S, size), zero outside first <= i < last (P,)."""

    weights: Tensor
    first: Tensor
    last: Tensor

    def every(self, step: int) -> Axis:
        """Each ``step``-th bin alone."""
        return Axis(self.weights[:, ::step], self.first, self.last)


def axis_of(
    low: Tensor, high: Tensor, *, bins: int, size: int, sampling_ratio: int, aligned: bool
) -> Axis:
    """Weights of regions that span ``low`` .. ``high`` (P,) in the map's pixels.

    With ``sampling_ratio`` 0 a bin has as many samples as it has pixels, rounded up. A sample
    further than a pixel outside counts as 0; one nearer is moved onto the border.
    """
    if aligned:
        low, length = low - 0.5, high - low
    else:
        length = (high - low).clamp(min=1.0)
    bin_size = length / bins
    if sampling_ratio > 0:
        count = torch.full_like(length, float(sampling_ratio))
    else:
        count = bin_size.ceil()
    most = max(int(count.max()), 1) if len(count) else 1
    sample = torch.arange(most, device=low.device)
    bin_ = torch.arange(bins, device=low.device)[:, None]
    inside_bin = (sample + 0.5) * (bin_size / count)[:, None, None]
    place = low[:, None, None] + bin_ * bin_size[:, None, None] + inside_bin  # P, S, G
    real = (sample < count[:, None, None]) & (place >= -1.0) & (place <= size)
    place = torch.where(real, place, 0.0).clamp(0, size - 1)
    floor = place.floor().clamp(max=size - 1)
    upper = (floor + 1).clamp(max=size - 1)
    share = torch.where(real, 1.0 / count.clamp(min=1)[:, None, None], 0.0)
    weights = low.new_zeros(len(low), bins, size)
    weights.scatter_add_(2, floor.long(), share * (1 - (place - floor)))
    weights.scatter_add_(2, upper.long(), share * (place - floor))
    if not len(low):
        nothing = torch.zeros(0, dtype=torch.int64)
        return Axis(weights, nothing, nothing)
    nowhere = torch.where(real, floor, size).flatten(1).amin(dim=1)
    first = nowhere.long()
    last = torch.where(real, upper, -1).flatten(1).amax(dim=1).long() + 1
    return Axis(weights, first, last)


@dataclass(frozen=True)
class Part:
    """The regions that one map pools: their rows (P,) in the result, image (P,) and axes."""

    rows: Tensor
    image: Tensor
    y: Axis
    x: Axis

    def places(self) -> list[list[int]]:
        """Row, image and window (y0, y1, x0, x1) of every region."""
        columns = (self.rows, self.image, self.y.first, self.y.last, self.x.first, self.x.last)
        return torch.stack(columns, dim=1).tolist()


class _Pool(torch.autograd.Function):
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
            for p, (row, n, y0, y1, x0, x1) in enumerate(part.places()):
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
            for p, (row, n, y0, y1, x0, x1) in enumerate(part.places()):
                if y0 < y1 and x0 < x1:
                    strips = wx[p, :, x0:x1].T @ gradient[row]  # S, w, C
                    window = cells[n, y0:y1, x0:x1].flatten(1)  # a view: its rows are whole
                    window.addmm_(wy[p, :, y0:y1].T, strips.flatten(1))
            results.append(cells.permute(0, 3, 1, 2).to(ctx.dtype))
        return tuple(results)


def pool(maps: Tensor, image: Tensor, y: Axis, x: Axis) -> Tensor:
    """Regions of maps (N, C, H, W), each of the image (P,) it lies in, to (P, C, S, T).

    Computed in the axes' format, float32 at least, and returned in the maps' format, channels last.
    """
    return pool_parts([maps], [Part(torch.arange(len(image)), image, y, x)])


def pool_parts(maps: Sequence[Tensor], parts: Sequence[Part]) -> Tensor:
    """The same from several maps, each of which pools its own part of the regions."""
    small = maps[0].shape[1] <= NARROW and sum(feature.numel() for feature in maps) <= SMALL
    some = any(len(part.rows) for part in parts)
    pooled: Tensor = (PoolSparsely if small and some else _Pool).apply(parts, *maps)
    return pooled


def axes_of(
    rois: Tensor,
    shape: tuple[int, int],
    *,
    output_size: int,
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> tuple[Tensor, Axis, Axis]:
    """Image (P,), y axis and x axis of rois (P, 5: image, xyxy) in a map (height, width)."""
    x0, y0, x1, y1 = (rois[:, 1:] * scale).unbind(dim=1)
    height, width = shape
    y = axis_of(
        y0, y1, bins=output_size, size=height, sampling_ratio=sampling_ratio, aligned=aligned
    )
    x = axis_of(
        x0, x1, bins=output_size, size=width, sampling_ratio=sampling_ratio, aligned=aligned
    )
    return rois[:, 0].long(), y, x
