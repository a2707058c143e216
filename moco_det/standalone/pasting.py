"""Soft masks in their boxes as COCO run lengths of whole images, many at a time.

No image is made: a mask is sampled around its box alone, in column-major order, and its runs begin
where a sample differs from the one above it. All of it happens where the masks are.

Letters: D masks, N strips of columns, T changes between one pixel and the next.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

STRIP = 16  # columns sampled together: boxes are cut into strips, so that little is padded
# samples taken in one go: what stays in a CPU's cache, what fills a GPU
AT_ONCE = {"cpu": 2**19, "cuda": 2**23}
OUTSIDE = 9.0  # grid_sample gives 0 there


def encode_masks(masks: Tensor, boxes: Tensor, sizes: Tensor) -> list[str]:
    """The ``counts`` of COCO's compressed run lengths of masks (D, S, S), each in its own image.

    A mask is sampled bilinearly at pixel centres and cut at 0.5; what lies outside its box counts
    as 0. ``boxes`` (D, 4) and ``sizes`` (D, 2), the images' heights and widths, are on the CPU
    whatever device the masks are on. Waits for the device.
    """
    if len(masks) == 0:
        return []
    device = masks.device
    low = (boxes[:, :2].floor().long() - 1).clamp(min=0)
    high = torch.minimum(boxes[:, 2:].ceil().long() + 1, sizes.flip(1))
    order = (high - low)[:, 1].argsort()  # strips of like heights side by side
    low, high, boxes, sizes = low[order], high[order], boxes[order], sizes[order]
    strips = (high[:, 0] - low[:, 0] + STRIP - 1) // STRIP * (high > low).all(dim=1)
    owner = torch.arange(len(order)).repeat_interleave(strips)
    number = torch.arange(len(owner)) - (strips.cumsum(0) - strips)[owner]
    x, y = low[owner].unbind(1)
    columns = [owner, order[owner], x + STRIP * number, y, *high[owner].unbind(1), sizes[owner, 0]]
    table = torch.stack(columns).to(device, non_blocking=True)
    corners = boxes[owner].to(device, non_blocking=True)
    found = [torch.empty(2, 0, dtype=torch.int64, device=device)]
    for part, height in chunks(high[owner, 1] - y, AT_ONCE[device.type]):
        found.append(find_changes(masks, corners[part], table[:, part], height))
    owners, places = torch.cat(found, dim=1)
    text, ends = spell(owners, places, sizes.prod(dim=1))
    texts = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return [texts[rank] for rank in order.argsort().tolist()]


def chunks(heights: Tensor, samples: int) -> Iterator[tuple[slice, int]]:
    """Slices of strips of rising heights (N,) that are sampled together, each with its height."""
    start = 0
    while start < len(heights):
        cost = torch.arange(1, len(heights) - start + 1) * STRIP * (heights[start:] + 2)
        end = start + max(1, int((cost <= samples).sum()))
        yield slice(start, end), int(heights[end - 1])
        start = end


def find_changes(masks: Tensor, boxes: Tensor, table: Tensor, height: int) -> Tensor:
    """Where the pixels of N strips change: owners and places in their images (2, T).

    ``boxes`` (N, 4); ``table`` (7, N) says of each strip its owner, its mask, its left, top, right
    and bottom in the image, and the image's height. Places count down the columns, and every
    column begins and ends outside.
    """
    owner, mask, left, top, right, bottom, image_height = table
    x = left[:, None] + torch.arange(STRIP, device=masks.device)
    y = top[:, None] + torch.arange(-1, height + 1, device=masks.device)
    shape = (*x.shape, y.shape[1])
    u, v = (
        ((at + 0.5 - boxes[:, k, None]) / (boxes[:, k + 2, None] - boxes[:, k, None])) * 2 - 1
        for k, at in ((0, x), (1, y))
    )
    u = u.masked_fill(x >= right[:, None], OUTSIDE)[:, :, None].expand(shape)
    v = v.masked_fill((y < top[:, None]) | (y >= bottom[:, None]), OUTSIDE)[:, None].expand(shape)
    grid = torch.stack([u, v], dim=-1)
    inside = F.grid_sample(masks[mask, None].float(), grid, align_corners=False)[:, 0] >= 0.5
    strip, column, row = (inside[:, :, 1:] != inside[:, :, :-1]).nonzero(as_tuple=True)
    place = (left[strip] + column) * image_height[strip] + top[strip] + row
    return torch.stack([owner[strip], place])


def spell(owner: Tensor, place: Tensor, totals: Tensor) -> tuple[str, list[int]]:
    """The changes of D masks as COCO's text, one mask after the other, and where each one ends.

    ``owner`` (T,) rises and so does ``place`` (T,) for each owner; ``totals`` (D,), on the CPU,
    are the pixels of the images. COCO's text has five bits in a character, the lowest first, a
    sixth says that more follow, and from the fourth run on a run is the difference to the one
    before the last.
    """
    bits = int(totals.max()).bit_length() + 1  # and the sign
    device = owner.device
    rank = torch.arange(len(totals), device=device)
    totals = totals.to(device, non_blocking=True)
    # a run that reaches the lowest line goes on at the top of the next column
    joined = (owner[1:] == owner[:-1]) & (place[1:] == place[:-1])
    keep = place < totals[owner]
    keep[1:] &= ~joined
    keep[:-1] &= ~joined
    kept = keep.nonzero()[:, 0]
    owner, place = owner[kept], place[kept]
    # where runs end: at each change, and the last one of an image with the image
    ends = torch.searchsorted(owner, rank, right=True) + rank + 1
    first = torch.cat([ends.new_zeros(1), ends[:-1]])
    until = torch.empty(len(owner) + len(rank), dtype=torch.int64, device=device)
    until[torch.arange(len(owner), device=device) + owner] = place
    until[ends - 1] = totals
    start = until.roll(1)
    start[first] = 0
    runs = until - start
    earlier = runs.roll(2)
    for k in range(3):  # may be the next image's: one of its first three too
        earlier[(first + k).clamp(max=len(runs) - 1)] = 0
    digits = (runs - earlier)[:, None] >> torch.arange(0, bits, 5, device=device)
    more = (digits < -16) | (digits > 15)
    codes = (digits & 31) + 32 * more + 48
    written = torch.cat([torch.ones_like(more[:, :1]), more[:, :-1]], dim=1)
    ends = written.sum(dim=1).cumsum(0)[ends - 1]
    content = torch.cat([ends.view(torch.uint8), codes[written].to(torch.uint8)]).cpu().numpy()
    length = 8 * len(rank)
    return content[length:].tobytes().decode("ascii"), content[:length].view(np.int64).tolist()
