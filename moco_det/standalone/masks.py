"""Training targets of the mask head, from polygons or bitmaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import roi_align

from moco_det.standalone.fixed_size import off_the_map, to_device

Mask = Sequence[np.ndarray] | np.ndarray  # polygons, or a bitmap of the image
Masks = Sequence[Sequence[Mask]]  # of N images


@dataclass
class Polygons:
    """The polygons of N images of M objects, rasterised by pycocotools: the COCO rule, on a CPU."""

    objects: list[Mask]

    @classmethod
    def of(cls, masks: Masks, objects: int, device: torch.device) -> Polygons:
        """Masks of N images, lists of polygons, as ``objects`` to each image."""
        none: list[Mask] = [[]] * objects
        return cls([mask for of_image in masks for mask in [*of_image, *none[len(of_image) :]]])

    def inside(self, objects: Tensor, boxes: Tensor, side: int) -> Tensor:
        """Masks (P, side, side), bool, of objects (P,), numbered through, in boxes (P, 4)."""
        corners = boxes.detach().numpy()
        # a box thinner than a tenth of a pixel would scale its polygon without bound
        scale = side / np.maximum(corners[:, 2:] - corners[:, :2], 0.1)
        owners, scaled = [], []
        for region, number in enumerate(objects.tolist()):
            for polygon in self.objects[number]:
                moved = (polygon.reshape(-1, 2) - corners[region, :2]) * scale[region]
                owners.append(region)
                scaled.append(moved.reshape(-1))
        targets = np.zeros((len(corners), side, side), dtype=bool)
        if scaled:  # one call for all: a call per object takes longer than its pixels
            pixels = coco_mask.decode(coco_mask.frPyObjects(scaled, side, side)).astype(bool)
            for owner, polygon in zip(owners, pixels.transpose(2, 0, 1), strict=True):
                targets[owner] |= polygon
        return torch.from_numpy(targets)


# Crossings of edges with columns that are computed in one go, for their memory.
CROSSINGS_AT_ONCE = 2**25


@dataclass
class Outlines:
    """The polygons of N images of M objects on a device, rasterised there.

    ``edges`` (E, 4) are x0, y0, x1, y1; those of object i are the ``count[i]`` from ``first[i]``
    on, at most ``longest``. Each polygon runs the same way round, so that a pixel is inside one of
    an object's polygons where the edges wind around its centre: pycocotools' rule but for its
    rounding of the outline to a fifth of a pixel, and for outlines that cross themselves.
    """

    edges: Tensor
    first: Tensor
    count: Tensor
    longest: int

    @classmethod
    def of(cls, masks: Masks, objects: int, device: torch.device) -> Outlines:
        """Masks of N images, lists of polygons, as ``objects`` to each image."""
        edges: list[np.ndarray] = []
        counts = np.zeros((len(masks), objects), dtype=np.int64)
        for i, of_image in enumerate(masks):
            for k, polygons in enumerate(of_image):
                for polygon in polygons:
                    start = polygon.reshape(-1, 2)
                    end = np.roll(start, -1, axis=0)
                    area = (start[:, 0] * end[:, 1] - start[:, 1] * end[:, 0]).sum()
                    edges.append(np.concatenate([start, end] if area > 0 else [end, start], axis=1))
                    counts[i, k] += len(start)
        flat = counts.reshape(-1)
        table = np.concatenate([*edges, np.zeros((1, 4))]).astype(np.float32)
        columns = (table, flat.cumsum() - flat, flat)
        edge, first, count = (to_device(torch.from_numpy(column), device) for column in columns)
        return cls(edge, first, count, int(flat.max(initial=1)))

    def inside(self, objects: Tensor, boxes: Tensor, side: int) -> Tensor:
        """Masks (P, side, side), bool, of objects (P,), numbered through, in boxes (P, 4)."""
        step = max(1, CROSSINGS_AT_ONCE // (self.longest * side))
        parts = zip(objects.split(step), boxes.split(step), strict=True)
        return torch.cat([self._some(some, box, side) for some, box in parts])

    def _some(self, objects: Tensor, boxes: Tensor, side: int) -> Tensor:
        number = torch.arange(self.longest, device=boxes.device)
        real = number < self.count[objects, None]  # P, E
        places = (self.first[objects, None] + number).clamp(max=len(self.edges) - 1)
        # a box thinner than a tenth of a pixel would scale its polygon without bound
        scale = side / (boxes[:, 2:] - boxes[:, :2]).clamp(min=0.1)
        corners = self.edges[places].unflatten(2, (2, 2))  # P, E, start and end, xy
        corners = (corners - boxes[:, None, None, :2]) * scale[:, None, None]
        (x0, y0), (x1, y1) = (corners[:, :, k].unbind(dim=2) for k in (0, 1))
        column = torch.arange(side, device=boxes.device)[:, None, None] + 0.5  # S, 1, 1
        crosses = ((x0 <= column) != (x1 <= column)) & real  # S, P, E
        slope = torch.where(x0 == x1, 0.0, (y1 - y0) / (x1 - x0))
        row = (y0 + (column - x0) * slope - 0.5).ceil().clamp(0, side)
        turn = torch.where(crosses, (x1 > x0).int() * 2 - 1, 0)
        wound = turn.new_zeros(*crosses.shape[:2], side + 1)
        wound.scatter_add_(2, row.nan_to_num(0.0).long(), turn)
        return (wound.cumsum(dim=2)[:, :, :side] != 0).permute(1, 2, 0)


@dataclass
class Bitmaps:
    """Masks of N images as bitmaps (M, H, W), uint8, on a device, cropped there by ROIAlign.

    They are sampled and cut at 0.5.
    """

    images: list[Tensor]
    objects: int

    @classmethod
    def of(cls, masks: Masks, objects: int, device: torch.device) -> Bitmaps:
        """Masks of N images, bool arrays, as ``objects`` to each image."""
        blank = [np.zeros((1, 1), dtype=bool)]
        images = [torch.from_numpy(np.stack(one or blank)).byte() for one in masks]
        return cls([to_device(image, device) for image in images], objects)

    def inside(self, objects: Tensor, boxes: Tensor, side: int) -> Tensor:
        """Masks (P, side, side), bool, of objects (P,), numbered through, in boxes (P, 4)."""
        found = boxes.new_zeros(len(boxes), side, side)
        for i, bitmaps in enumerate(self.images):
            number = objects - i * self.objects
            rois = torch.cat([number[:, None].to(boxes.dtype), boxes], dim=1)
            rois = off_the_map(rois, (number < 0) | (number >= len(bitmaps)))
            maps = bitmaps[:, None].to(boxes.dtype)
            found += roi_align(maps, rois, (side, side), 1.0, 0, True)[:, 0]
        return found >= 0.5
