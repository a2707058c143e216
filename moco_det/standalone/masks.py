"""Masks: training targets from polygons or bitmaps, and predictions pasted into an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
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


def paste_mask(mask: Tensor, box: Tensor, height: int, width: int) -> np.ndarray:
    """A soft mask (S, S) in its box to a bool image (height, width), cut at 0.5.

    The mask is sampled bilinearly at pixel centres; what lies outside counts as 0.
    """
    image = np.zeros((height, width), dtype=bool)
    x0, y0, x1, y1 = box.tolist()
    left, top = max(int(np.floor(x0)) - 1, 0), max(int(np.floor(y0)) - 1, 0)
    right, bottom = min(int(np.ceil(x1)) + 1, width), min(int(np.ceil(y1)) + 1, height)
    if right <= left or bottom <= top:
        return image
    x = (torch.arange(left, right, dtype=torch.float32) + 0.5 - box[0]) / (box[2] - box[0])
    y = (torch.arange(top, bottom, dtype=torch.float32) + 0.5 - box[1]) / (box[3] - box[1])
    grid_y, grid_x = torch.meshgrid(y * 2 - 1, x * 2 - 1, indexing="ij")
    grid = torch.stack([grid_x, grid_y], dim=-1)[None]
    soft = F.grid_sample(mask[None, None].float(), grid, align_corners=False)[0, 0]
    image[top:bottom, left:right] = (soft >= 0.5).numpy()
    return image


def encode_mask(image: np.ndarray) -> dict[str, object]:
    """A bool image as COCO run lengths with a text ``counts``."""
    rle = coco_mask.encode(np.asfortranarray(image.astype(np.uint8)))
    return {"size": [int(s) for s in rle["size"]], "counts": rle["counts"].decode("ascii")}
