"""What a step is to find: the objects of one image, and those of a batch on its device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moco_det.standalone.fixed_size import is_fixed, pad, present, to_device
from moco_det.standalone.masks import Bitmaps, Outlines, Polygons


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

    boxes (N, M, 4), classes (N, M) and which of them are real (N, M).
    """

    boxes: Tensor
    classes: Tensor
    real: Tensor
    shapes: Polygons | Outlines | Bitmaps | None = None

    @classmethod
    def of(cls, targets: Sequence[Targets], device: torch.device) -> GroundTruth:
        """Targets of a batch, copied to a device."""
        # one object too many, so that there is one, and then taken away again
        boxes = [*(t.boxes for t in targets), targets[0].boxes.new_zeros(1, 4)]
        classes = [*(t.classes for t in targets), torch.zeros(1, dtype=torch.int64)]
        columns = (pad(boxes), pad(classes), present(boxes))
        box, class_, real = (to_device(column[:-1], device) for column in columns)
        truth = cls(box, class_, real)
        masks = [t.masks for t in targets if t.masks is not None]
        if masks:
            kind: type[Polygons | Outlines | Bitmaps]
            kind = Outlines if is_fixed(truth.boxes) else Polygons
            if any(isinstance(mask, np.ndarray) for of_image in masks for mask in of_image):
                kind = Bitmaps
            truth.shapes = kind.of(masks, truth.boxes.shape[1], device)
        return truth

    def masks_of(self, image: Tensor, matched: Tensor, boxes: Tensor, side: int) -> Tensor:
        """Masks (P, side, side), bool, of objects (P,) of images (P,), inside boxes (P, 4)."""
        assert self.shapes is not None
        return self.shapes.inside(image * self.real.shape[1] + matched, boxes, side)
