"""Ground truth of the golden images for this engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from moco_det.standalone.fixed_size import pad, present
from moco_det.standalone.masks import Bitmaps, Mask, Polygons
from moco_det.standalone.rpn import Proposals
from moco_det.standalone.targets import Targets
from tests.golden.filling import OBJECTS, polygon_of

Objects = tuple[tuple[tuple[float, ...], ...], ...]


def targets_of(objects: Objects = OBJECTS) -> list[Targets]:
    return [
        Targets(
            torch.tensor([o[:4] for o in rows]).reshape(-1, 4),
            torch.tensor([int(o[4]) for o in rows], dtype=torch.int64),
            [[polygon_of(o)] for o in rows],
        )
        for rows in objects
    ]


def mask_targets(masks: Sequence[Mask], boxes: Tensor, side: int) -> Tensor:
    """Each mask (P) cropped by its box (P, 4) and scaled to (P, side, side), on a CPU."""
    kind = Bitmaps if masks and isinstance(masks[0], np.ndarray) else Polygons
    shapes = kind.of([masks], len(masks), torch.device("cpu"))
    return shapes.inside(torch.arange(len(masks)), boxes, side)


def rois_of_images(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes of N images as rois (P, 5)."""
    image = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
    return torch.cat([image, torch.cat(list(boxes))], dim=1)


def proposals_of(boxes: Sequence[Tensor], logits: Sequence[Tensor] | None = None) -> Proposals:
    """Proposals of N images from the boxes of each."""
    scores = [b.new_zeros(len(b)) for b in boxes] if logits is None else list(logits)
    return Proposals(pad(list(boxes)), pad(scores), present(list(boxes)))
