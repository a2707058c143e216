"""Batch norm over groups of a batch for GPUs in Triton, which compiles each kernel at first use.

Three launches forward (sums, statistics, output) and three backward, whatever the number of groups.
Nothing is copied: a group is consecutive images, and with channels last its cells are consecutive
rows. Numbers are computed in float32 whatever the format of the map, as F.batch_norm computes them.

Letters: G groups of M rows (images x cells), C channels, S splits of a group's rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Enough for each of an H100's 132 multiprocessors to hold several, each waiting for its own reads.
PROGRAMS = 1024
# Numbers of a map that a program holds at a time, and how many channels they cover at most.
TILE, CHANNELS = 4096, 64
# Channels that one program sums over splits and groups.
FINISHED = 8


@triton.jit(do_not_specialize=["rows", "part"])
def _sum(
    x,
    gradient,
    means,
    partial,
    rows,
    part,
    channels,
    BACKWARD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums over one split: of x - K and its square, or of dy and dy (x - mean).

    K is the group's first row: near the mean where that is large, so that nothing cancels.
    """
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    split = tl.program_id(1)
    group = tl.program_id(2).to(tl.int64)
    is_channel = channel < channels
    first = split * part
    start = (group * rows + first) * channels
    if BACKWARD:
        centre = tl.load(means + group * channels + channel, mask=is_channel, other=0.0)
    else:
        centre = tl.load(x + group * rows * channels + channel, mask=is_channel, other=0.0)
    centre = centre.to(tl.float32)[None, :]
    one = tl.zeros((ROWS, BLOCK), tl.float32)
    two = tl.zeros((ROWS, BLOCK), tl.float32)
    count = tl.minimum(part, rows - first)
    for done in range(0, count, ROWS):
        row = done + tl.arange(0, ROWS)
        at = start + row[:, None] * channels + channel[None, :]
        inside = (row < count)[:, None] & is_channel[None, :]
        distance = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - centre
        if BACKWARD:
            value = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        else:
            value = tl.where(inside, distance, 0.0)
        one += value
        two += value * distance
    out = partial + (group * tl.num_programs(1) + split) * 2 * channels + channel
    tl.store(out, tl.sum(one, axis=0), mask=is_channel)
    tl.store(out + channels, tl.sum(two, axis=0), mask=is_channel)


@triton.jit
def _mean(partial, group, channel, inside, rows, splits, channels, SPLITS: tl.constexpr):
    """Both sums of `_sum` over the splits, divided by M, for each of some groups and channels."""
    one = tl.zeros((group.shape[0], SPLITS, channel.shape[0]), tl.float32)
    two = tl.zeros((group.shape[0], SPLITS, channel.shape[0]), tl.float32)
    for first in range(0, splits, SPLITS):
        split = first + tl.arange(0, SPLITS)
        at = (group[:, None] * splits + split[None, :])[:, :, None] * 2 * channels
        at += channel[None, None, :]
        known = (split < splits)[None, :, None] & inside[:, None, :]
        one += tl.load(partial + at, mask=known, other=0.0)
        two += tl.load(partial + at + channels, mask=known, other=0.0)
    return tl.sum(one, axis=1) / rows, tl.sum(two, axis=1) / rows


@triton.jit(do_not_specialize=["rows", "groups", "splits"])
def _statistics(
    x,
    partial,
    means,
    inverses,
    running_mean,
    running_var,
    momentum,
    eps,
    rows,
    groups,
    splits,
    channels,
    GROUPS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Mean and 1 / standard deviation per group; one running step to the mean over groups."""
    group = tl.arange(0, GROUPS)
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_channel = channel < channels
    inside = (group < groups)[:, None] & is_channel[None, :]
    mean, square = _mean(partial, group, channel, inside, rows, splits, channels, SPLITS)
    var = tl.maximum(square - mean * mean, 0.0)
    first = x + (group.to(tl.int64) * rows * channels)[:, None] + channel[None, :]
    mean += tl.load(first, mask=inside, other=0.0).to(tl.float32)
    at = group[:, None] * channels + channel[None, :]
    tl.store(means + at, mean, mask=inside)
    tl.store(inverses + at, 1.0 / tl.sqrt(var + eps), mask=inside)
    new_mean = tl.sum(tl.where(inside, mean, 0.0), axis=0) / groups
    new_var = tl.sum(tl.where(inside, var, 0.0), axis=0) / groups * (rows / (rows - 1))
    old_mean = tl.load(running_mean + channel, mask=is_channel)
    old_var = tl.load(running_var + channel, mask=is_channel)
    tl.store(running_mean + channel, old_mean + momentum * (new_mean - old_mean), mask=is_channel)
    tl.store(running_var + channel, old_var + momentum * (new_var - old_var), mask=is_channel)


@triton.jit(do_not_specialize=["rows", "groups", "splits"])
def _gradients(
    partial,
    inverses,
    shifts,
    slopes,
    weight_gradient,
    bias_gradient,
    rows,
    groups,
    splits,
    channels,
    GROUPS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of weight and bias, and per group what `_apply` takes off the map's gradient."""
    group = tl.arange(0, GROUPS)
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_channel = channel < channels
    inside = (group < groups)[:, None] & is_channel[None, :]
    mean, product = _mean(partial, group, channel, inside, rows, splits, channels, SPLITS)
    at = group[:, None] * channels + channel[None, :]
    inverse = tl.load(inverses + at, mask=inside, other=0.0)
    tl.store(shifts + at, mean, mask=inside)
    tl.store(slopes + at, product * inverse * inverse, mask=inside)
    tl.store(weight_gradient + channel, tl.sum(product * inverse, axis=0) * rows, mask=is_channel)
    tl.store(bias_gradient + channel, tl.sum(mean, axis=0) * rows, mask=is_channel)


@triton.jit(do_not_specialize=["rows", "part"])
def _apply(
    x,
    gradient,
    out,
    means,
    inverses,
    weight,
    bias,
    shifts,
    slopes,
    rows,
    part,
    channels,
    BACKWARD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One split of the output, or of the gradient of the input.

    From the last to the first: what `_sum` read last is in the cache.
    """
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * part
    group = (tl.num_programs(2) - 1 - tl.program_id(2)).to(tl.int64)
    is_channel = channel < channels
    of_group = group * channels + channel
    mean = tl.load(means + of_group, mask=is_channel, other=0.0)[None, :]
    scale = tl.load(inverses + of_group, mask=is_channel, other=0.0)
    scale = (scale * tl.load(weight + channel, mask=is_channel, other=0.0))[None, :]
    if BACKWARD:
        shift = tl.load(shifts + of_group, mask=is_channel, other=0.0)[None, :]
        slope = tl.load(slopes + of_group, mask=is_channel, other=0.0)[None, :]
    else:
        shift = tl.load(bias + channel, mask=is_channel, other=0.0)[None, :]
    start = (group * rows + first) * channels
    count = tl.minimum(part, rows - first)
    for done in range(0, count, ROWS):
        row = done + tl.arange(0, ROWS)
        at = start + row[:, None] * channels + channel[None, :]
        inside = (row < count)[:, None] & is_channel[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - mean
        if BACKWARD:
            of_out = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
            value = (of_out - shift - value * slope) * scale
        else:
            value = value * scale + shift
        tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


class _Launches:
    """What runs a kernel over a map with channels last, or over what its splits gave."""

    def __init__(self, x: Tensor, groups: int) -> None:
        n, self.channels, h, w = x.shape
        self.groups, self.rows = groups, n // groups * h * w
        block = min(triton.next_power_of_2(self.channels), CHANNELS)
        self.tile = height, width = TILE // block, block
        self.blocks = triton.cdiv(self.channels, width)
        splits = max(1, PROGRAMS // (self.blocks * groups))
        self.part = triton.cdiv(triton.cdiv(self.rows, splits), height) * height
        self.splits = triton.cdiv(self.rows, self.part)

    def each_split(self, kernel: Any, *tensors: Tensor, backward: bool) -> None:
        grid = (self.blocks, self.splits, self.groups)
        sizes = (self.rows, self.part, self.channels)
        kernel[grid](*tensors, *sizes, backward, *self.tile, num_warps=4)

    def all_splits(self, kernel: Any, *arguments: Tensor | float) -> None:
        grid = (triton.cdiv(self.channels, FINISHED),)
        sizes = (self.rows, self.groups, self.splits, self.channels)
        groups = triton.next_power_of_2(self.groups)
        splits = max(1, TILE // (groups * FINISHED))
        kernel[grid](*arguments, *sizes, groups, splits, FINISHED, num_warps=8)


class GroupedBatchNorm(torch.autograd.Function):
    """Batch norm in training of each of `groups` equal runs of images of x (N, C, H, W).

    F.batch_norm's numbers in x's format and with channels last. The running statistics take one
    step, in place, towards the mean over groups.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        groups: int,
        momentum: float,
        eps: float,
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        run = ctx.run = _Launches(x, groups)
        means, inverses = running_mean.new_empty(2, groups, run.channels)
        partial = means.new_empty(groups, run.splits, 2, run.channels)
        run.each_split(_sum, x, x, means, partial, backward=False)
        running = running_mean, running_var
        run.all_splits(_statistics, x, partial, means, inverses, *running, momentum, eps)
        out = torch.empty_like(x)
        # what only the backward pass reads is x and means here
        tensors = x, x, out, means, inverses, weight, bias, means, means
        run.each_split(_apply, *tensors, backward=False)
        ctx.save_for_backward(x, weight, bias, means, inverses)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, means, inverses = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        run = ctx.run
        partial = means.new_empty(run.groups, run.splits, 2, run.channels)
        run.each_split(_sum, x, gradient, means, partial, backward=True)
        shifts, slopes = torch.empty_like(means), torch.empty_like(means)
        of_weight, of_bias = torch.empty_like(weight), torch.empty_like(bias)
        run.all_splits(_gradients, partial, inverses, shifts, slopes, of_weight, of_bias)
        out = torch.empty_like(x)
        tensors = x, gradient, out, means, inverses, weight, bias, shifts, slopes
        run.each_split(_apply, *tensors, backward=True)
        return out, of_weight, of_bias, *[None] * 5
