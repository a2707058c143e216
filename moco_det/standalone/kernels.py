"""NMS and ROIAlign for GPUs in Triton, which compiles each when it is first called.

torchvision's NMS goes through the boxes of one image in a single thread block and waits for its
result: with thousands of boxes in each of several images that is a quarter of a training step.
Here all problems run at once and nothing is waited for. torchvision's ROIAlign takes maps with
channels first and in the format of the boxes; here a cell's channels lie side by side and are
computed in float32 whatever the format of the map.

Letters: B problems of n boxes, W = n / 32 words; N images, C channels, H x W map, P regions,
S x S bins of a region.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from moco_det.standalone.roi_align import ROIPooler


@triton.jit(do_not_specialize=["n", "words"])
def _overlapping(
    boxes, groups, words_out, n, words, threshold, GROUPED: tl.constexpr, ROWS: tl.constexpr
):
    """Bit j of word (b, i, w): box 32 w + j comes after box i and overlaps it by more than that."""
    column_word = tl.program_id(0)
    first_row = tl.program_id(1) * ROWS
    problem = tl.program_id(2).to(tl.int64)
    if column_word * 32 + 31 <= first_row:
        return
    row = first_row + tl.arange(0, ROWS)
    column = column_word * 32 + tl.arange(0, 32)
    at_row = boxes + (problem * n + row) * 4
    at_column = boxes + (problem * n + column) * 4
    is_row = row < n
    is_column = column < n
    x0 = tl.load(at_row, mask=is_row, other=0.0)
    y0 = tl.load(at_row + 1, mask=is_row, other=0.0)
    x1 = tl.load(at_row + 2, mask=is_row, other=0.0)
    y1 = tl.load(at_row + 3, mask=is_row, other=0.0)
    left = tl.load(at_column, mask=is_column, other=0.0)
    top = tl.load(at_column + 1, mask=is_column, other=0.0)
    right = tl.load(at_column + 2, mask=is_column, other=0.0)
    bottom = tl.load(at_column + 3, mask=is_column, other=0.0)
    width = tl.minimum(x1[:, None], right[None, :]) - tl.maximum(x0[:, None], left[None, :])
    height = tl.minimum(y1[:, None], bottom[None, :]) - tl.maximum(y0[:, None], top[None, :])
    common = tl.maximum(width, 0.0) * tl.maximum(height, 0.0)
    areas = ((x1 - x0) * (y1 - y0))[:, None] + ((right - left) * (bottom - top))[None, :]
    over = common / (areas - common) > threshold
    over = over & (column[None, :] > row[:, None]) & is_column[None, :]
    if GROUPED:
        own = tl.load(groups + problem * n + row, mask=is_row, other=-1)
        other = tl.load(groups + problem * n + column, mask=is_column, other=-1)
        over = over & (own[:, None] == other[None, :])
    bit = tl.arange(0, 32)[None, :]
    word = tl.sum(tl.where(over, tl.full((1, 32), 1, tl.int32) << bit, 0), axis=1)
    tl.store(words_out + (problem * n + row) * words + column_word, word, mask=is_row)


@triton.jit
def _either(one, other):
    return one | other


@triton.jit(do_not_specialize=["n", "words", "count"])
def _best_first(overlapping, real, removed, keep, n, words, count, CHUNK: tl.constexpr):
    """Keep each box that none kept before it overlaps; 32 at a time, one problem a program."""
    problem = tl.program_id(0).to(tl.int64)
    overlapping += problem * n * words
    real += problem * n
    keep += problem * n
    removed += problem * words
    lane = tl.arange(0, 32)
    kept = 0
    for block in range(words):
        if kept < count:
            row = block * 32 + lane
            is_real = tl.load(real + row, mask=row < n, other=0) != 0
            absent = tl.sum(tl.where(is_real, 0, 1 << lane), axis=0)
            dead = tl.load(removed + block, cache_modifier=".cg") | absent
            bits = dead * 0
            for i in tl.static_range(32):
                at = block * 32 + i
                later = tl.load(overlapping + at * words + block, mask=at < n, other=0)
                alive = ((dead >> i) & 1) == 0
                bits = bits | (alive.to(tl.int32) << i)
                dead = tl.where(alive, dead | later, dead)
            is_kept = ((bits >> lane) & 1) != 0
            kept += tl.sum(is_kept.to(tl.int32), axis=0)
            tl.store(keep + row, is_kept.to(tl.int8), mask=row < n)
            for start in range(block + 1, words, CHUNK):
                word = start + tl.arange(0, CHUNK)
                is_word = word < words
                found = tl.load(
                    overlapping + row[:, None] * words + word[None, :],
                    mask=is_kept[:, None] & is_word[None, :],
                    other=0,
                )
                before = tl.load(removed + word, mask=is_word, other=0, cache_modifier=".cg")
                after = before | tl.reduce(found, 0, _either)
                tl.store(removed + word, after, mask=is_word)
            tl.debug_barrier()


def nms(boxes: Tensor, groups: Tensor | None, real: Tensor, threshold: float, count: int) -> Tensor:
    """What `fixed_size.nms` says, for boxes (B, n, 4)."""
    problems, n, _ = boxes.shape
    words = triton.cdiv(n, 32)
    keep = torch.zeros(problems, n, dtype=torch.int8, device=boxes.device)
    if n == 0 or problems == 0:
        return keep.bool()
    boxes = boxes.float().contiguous()
    overlapping = torch.empty(problems, n, words, dtype=torch.int32, device=boxes.device)
    removed = torch.zeros(problems, words, dtype=torch.int32, device=boxes.device)
    of = keep if groups is None else groups.to(torch.int32).contiguous()
    rows, grouped = 64, groups is not None
    grid = (words, triton.cdiv(n, rows), problems)
    _overlapping[grid](boxes, of, overlapping, n, words, threshold, grouped, rows, num_warps=2)
    flags = real.to(torch.int8).contiguous()
    _best_first[(problems,)](overlapping, flags, removed, keep, n, words, count, 64, num_warps=4)
    return keep.bool()


@triton.jit
def _axis(low, side, bin_number, sample, samples, bins, size):
    """Two cells of an axis and their weights at one of the sampling points of a bin."""
    step = side / bins
    place = low + bin_number * step + (sample + 0.5) * step / samples
    inside = (place >= -1.0) & (place <= size)
    place = tl.minimum(tl.maximum(place, 0.0), size - 1.0)
    first = tl.minimum(place.to(tl.int32), size - 1)
    second = tl.minimum(first + 1, size - 1)
    share = place - first
    return first, second, 1.0 - share, share, inside


@triton.jit(do_not_specialize=["level", "height", "width", "bins", "out_bins", "every", "ratio"])
def _pool(
    cells,
    rois,
    levels,
    pooled,
    level,
    height,
    width,
    channels,
    scale,
    bins,
    out_bins,
    every,
    ratio,
    ALIGNED: tl.constexpr,
    BACKWARD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One bin of one region: its mean of samples, or its gradient added to the cells."""
    place = tl.program_id(0)
    region = (place // (out_bins * out_bins)).to(tl.int64)
    if tl.load(levels + region) != level:
        return
    by = (place // out_bins) % out_bins * every
    bx = place % out_bins * every
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_channel = channel < channels
    image = tl.load(rois + region * 5).to(tl.int64)
    offset = 0.5 if ALIGNED else 0.0
    x0 = tl.load(rois + region * 5 + 1) * scale - offset
    y0 = tl.load(rois + region * 5 + 2) * scale - offset
    w = tl.load(rois + region * 5 + 3) * scale - offset - x0
    h = tl.load(rois + region * 5 + 4) * scale - offset - y0
    if not ALIGNED:
        w = tl.maximum(w, 1.0)
        h = tl.maximum(h, 1.0)
    down = ratio
    across = ratio
    if ratio <= 0:
        down = tl.ceil(h / bins).to(tl.int32)
        across = tl.ceil(w / bins).to(tl.int32)
    part = 1.0 / tl.maximum(down * across, 1)
    out = pooled + place.to(tl.int64) * channels + channel
    cells += image * height * width * channels + channel
    total = tl.zeros((BLOCK,), tl.float32)
    if BACKWARD:
        total = tl.load(out, mask=is_channel, other=0.0).to(tl.float32) * part
    for iy in range(down):
        top, bottom, above, below, is_y = _axis(y0, h, by, iy, down, bins, height)
        for ix in range(across):
            left, right, before, after, is_x = _axis(x0, w, bx, ix, across, bins, width)
            if is_y & is_x:
                a = cells + (top * width + left) * channels
                b = cells + (top * width + right) * channels
                c = cells + (bottom * width + left) * channels
                d = cells + (bottom * width + right) * channels
                if BACKWARD:
                    tl.atomic_add(a, total * (above * before), mask=is_channel, sem="relaxed")
                    tl.atomic_add(b, total * (above * after), mask=is_channel, sem="relaxed")
                    tl.atomic_add(c, total * (below * before), mask=is_channel, sem="relaxed")
                    tl.atomic_add(d, total * (below * after), mask=is_channel, sem="relaxed")
                else:
                    total += tl.load(a, mask=is_channel, other=0.0).to(tl.float32) * above * before
                    total += tl.load(b, mask=is_channel, other=0.0).to(tl.float32) * above * after
                    total += tl.load(c, mask=is_channel, other=0.0).to(tl.float32) * below * before
                    total += tl.load(d, mask=is_channel, other=0.0).to(tl.float32) * below * after
    if not BACKWARD:
        tl.store(out, (total * part).to(pooled.dtype.element_ty), mask=is_channel)


class ROIAlign(torch.autograd.Function):
    """What a pooler makes of rois (P, 5), their levels (P,) and L maps (N, C, H, W): (P, C, S, S).

    torchvision's numbers, computed in float32 and given in the maps' format, channels last; with
    ``every`` each of so many bins alone.
    """

    @staticmethod
    def forward(
        ctx: Any, pooler: ROIPooler, every: int, rois: Tensor, levels: Tensor, *maps: Tensor
    ) -> Tensor:
        ctx.settings = pooler, every
        rois, levels = rois.float().contiguous(), levels.to(torch.int32).contiguous()
        ctx.save_for_backward(rois, levels)
        ctx.shapes = [(m.shape, m.dtype) for m in maps]
        bins = triton.cdiv(pooler.output_size, every)
        pooled = maps[0].new_empty(len(rois), bins, bins, maps[0].shape[1])
        cells = [m.permute(0, 2, 3, 1).contiguous() for m in maps]
        _every_level(cells, pooled, rois, levels, pooler, every, backward=False)
        return pooled.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rois, levels = ctx.saved_tensors
        gradient = gradients[0].permute(0, 2, 3, 1).contiguous()
        cells = [torch.zeros(n, h, w, c, device=rois.device) for (n, c, h, w), _ in ctx.shapes]
        _every_level(cells, gradient, rois, levels, *ctx.settings, backward=True)
        own = [c.permute(0, 3, 1, 2).to(t) for c, (_, t) in zip(cells, ctx.shapes, strict=True)]
        return (*[None] * 4, *own)


def _every_level(
    cells: Sequence[Tensor],
    pooled: Tensor,
    rois: Tensor,
    levels: Tensor,
    pooler: ROIPooler,
    every: int,
    *,
    backward: bool,
) -> None:
    """Pool each level's regions from its cells (N, H, W, C), or the reverse."""
    _, out_bins, _, channels = pooled.shape
    block = min(triton.next_power_of_2(channels), 512)
    grid = (len(rois) * out_bins * out_bins, triton.cdiv(channels, block))
    if not grid[0]:
        return
    for level, (one, stride) in enumerate(zip(cells, pooler.strides, strict=True)):
        sizes = (level, *one.shape[1:], 1.0 / stride, pooler.output_size, out_bins, every)
        flags = (pooler.sampling_ratio, pooler.aligned, backward, block)
        _pool[grid](one, rois, levels, pooled, *sizes, *flags, num_warps=max(1, block // 128))
