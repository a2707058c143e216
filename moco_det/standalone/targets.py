"""What a step is to find: the objects of one image, and those of a batch on its device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moco_det.standalone.fixed_size import is_fixed, pad, present, to_device
from moco_det.standalone.masks import Bitmaps, Mask, Outlines, mask_targets


@dataclass
class Targets:
    """Ground truth of one image: boxes (M, 4), classes (M,), and masks where they are trained.

    ``masks`` holds one instance each: a list of polygons (x, y, x, y ... arrays) or a bool array
    of the input image's size.
    """

    boxes: Tensor
    classes: Tensor
    masks: list[Any] | None = None


@dataclass
class GroundTruth:
    """The same of N images, padded to the M >= 1 objects of the one that has most.

    boxes (N, M, 4), classes (N, M) and which of them are real (N, M). ``shapes`` are the masks as
    a GPU needs them.
    """

    boxes: Tensor
    classes: Tensor
    real: Tensor
    masks: Sequence[list[Any] | None]
    shapes: Outlines | Bitmaps | None = None

    @classmethod
    def of(cls, targets: Sequence[Targets], device: torch.device) -> GroundTruth:
        """Targets of a batch, copied to a device."""
        # one object too many, so that there is one, and then taken away again
        boxes = [*(t.boxes for t in targets), targets[0].boxes.new_zeros(1, 4)]
        classes = [*(t.classes for t in targets), torch.zeros(1, dtype=torch.int64)]
        columns = (pad(boxes), pad(classes), present(boxes))
        box, class_, real = (to_device(column[:-1], device) for column in columns)
        truth = cls(box, class_, real, [t.masks for t in targets])
        if is_fixed(truth.boxes) and all(masks is not None for masks in truth.masks):
            first = next((mask for masks in truth.masks for mask in masks or []), None)
            kind = Bitmaps if isinstance(first, np.ndarray) else Outlines
            truth.shapes = kind.of(truth.masks, truth.boxes.shape[1], device)
        return truth

    def masks_of(self, image: Tensor, matched: Tensor, boxes: Tensor, side: int) -> Tensor:
        """Masks (P, side, side), bool, of objects (P,) of images (P,), inside boxes (P, 4).

        ValueError where the objects have none.
        """
        if any(masks is None for masks in self.masks):
            raise ValueError("MODEL.MASK_ON needs masks in the training data")
        if self.shapes is not None:
            return self.shapes.inside(image * self.real.shape[1] + matched, boxes, side)
        chosen: list[Mask] = []
        for i, k in zip(image.tolist(), matched.tolist(), strict=True):
            chosen.append((self.masks[i] or [])[k])
        return mask_targets(chosen, boxes, side)
