"""Masks: training targets from polygons or bitmaps, and predictions pasted into an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

Mask = Sequence[np.ndarray] | np.ndarray


def mask_targets(masks: Sequence[Mask], boxes: Tensor, side: int) -> Tensor:
    """Each mask cropped by its box (P, 4) and scaled to (P, side, side), bool.

    Polygons are rasterised inside the box by the COCO rule; bitmaps are sampled by ROIAlign and
    cut at 0.5.
    """
    if len(masks) == 0:
        return torch.zeros(0, side, side, dtype=torch.bool, device=boxes.device)
    corners = boxes.detach().cpu()
    if isinstance(masks[0], np.ndarray):
        crops = [_crop_bitmap(m, box, side) for m, box in zip(masks, corners, strict=True)]
        return torch.stack(crops).to(boxes.device)
    return torch.from_numpy(_rasterise(masks, corners.numpy(), side)).to(boxes.device)


def _rasterise(masks: Sequence[Mask], boxes: np.ndarray, side: int) -> np.ndarray:
    # a box thinner than a tenth of a pixel would scale its polygon without bound
    scale = side / np.maximum(boxes[:, 2:] - boxes[:, :2], 0.1)
    scaled = [
        ((polygon.reshape(-1, 2) - boxes[i, :2]) * scale[i]).reshape(-1)
        for i, polygons in enumerate(masks)
        for polygon in polygons
    ]
    targets = np.zeros((len(masks), side, side), dtype=bool)
    if scaled:  # one call for all: a call per object takes longer than its pixels
        owners = np.repeat(np.arange(len(masks)), [len(polygons) for polygons in masks])
        pixels = coco_mask.decode(coco_mask.frPyObjects(scaled, side, side)).astype(bool)
        for owner, polygon in zip(owners, pixels.transpose(2, 0, 1), strict=True):
            targets[owner] |= polygon
    return targets


def _crop_bitmap(mask: Mask, box: Tensor, side: int) -> Tensor:
    image = torch.from_numpy(np.ascontiguousarray(mask)).float()[None, None]
    roi = torch.cat([box.new_zeros(1), box])[None]
    return roi_align(image, roi, (side, side), 1.0, 0, True)[0, 0] >= 0.5


# Pixels that are sampled in one go: some small masks, or a large one.
PASTED_AT_ONCE = 2**17


def paste_masks(
    masks: Tensor, boxes: Tensor, height: int, width: int
) -> Iterator[npt.NDArray[np.bool_]]:
    """Soft masks (D, S, S) in their boxes (D, 4) as D bool images (height, width), cut at 0.5.

    A mask is sampled bilinearly at pixel centres; what lies outside counts as 0.
    """
    limit = boxes.new_tensor([width, height]).long()
    low = (boxes[:, :2].floor().long() - 1).clamp(min=0)
    size = (torch.minimum(boxes[:, 2:].ceil().long() + 1, limit) - low).clamp(min=0)
    first = 0
    while first < len(boxes):
        last, most = first + 1, size[first]
        while last < len(boxes):
            larger = torch.maximum(most, size[last])
            if int(larger.prod()) * (last + 1 - first) > PASTED_AT_ONCE:
                break
            last, most = last + 1, larger
        part = slice(first, last)
        x, y = (
            (low[part, k, None] + torch.arange(int(most[k])) + 0.5 - boxes[part, k, None])
            / (boxes[part, k + 2, None] - boxes[part, k, None])
            for k in (0, 1)
        )
        shape = (last - first, int(most[1]), int(most[0]))
        grid = torch.stack(
            [(x * 2 - 1)[:, None].expand(shape), (y * 2 - 1)[:, :, None].expand(shape)], dim=-1
        )
        soft = F.grid_sample(masks[part, None].float(), grid, align_corners=False)[:, 0]
        inside = (soft >= 0.5).numpy()
        for one, (left, top), (w, h) in zip(
            inside, low[part].tolist(), size[part].tolist(), strict=True
        ):
            image = np.zeros((height, width), dtype=bool)
            image[top : top + h, left : left + w] = one[:h, :w]
            yield image
        first = last


def encode_mask(image: np.ndarray) -> dict[str, object]:
    """A bool image as COCO run lengths with a text ``counts``."""
    rle = coco_mask.encode(np.asfortranarray(image.astype(np.uint8)))
    return {"size": [int(s) for s in rle["size"]], "counts": rle["counts"].decode("ascii")}
