"""Ground truth of the golden images for this engine."""

from __future__ import annotations

import torch

from moco_det.standalone.rpn import Targets
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
