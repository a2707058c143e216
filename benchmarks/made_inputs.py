"""Images with objects for benchmarks of detectors, in memory and as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from moco_det.data import Annotation, Record

OBJECTS = 15  # per image


@dataclass
class Inputs:
    """Images, and the objects (boxes, classes, polygons) of each."""

    images: list[Tensor]
    boxes: list[Tensor]
    classes: list[Tensor]
    polygons: list[list[list[np.ndarray]]]

    def written(self, folder: Path, copies: int) -> list[Record]:
        """The same as JPEG files with their records, ``copies`` of each."""
        records = []
        for i, image in enumerate(self.images):
            file = folder / f"{i}.jpg"
            pixels = np.ascontiguousarray(image.byte().permute(1, 2, 0).numpy())
            Image.fromarray(pixels).save(file, quality=90)
            objects = tuple(
                Annotation(tuple(box), class_, segmentation=[p.tolist() for p in polygons])
                for box, class_, polygons in zip(
                    self.boxes[i].tolist(), self.classes[i].tolist(), self.polygons[i], strict=True
                )
            )
            _, height, width = image.shape
            records.append(Record(i, str(file), height, width, objects))
        return records * copies


def made_inputs(size: int, batch: int) -> Inputs:
    """Images of size x size with fifteen objects each, octagons in their boxes."""
    random = torch.Generator().manual_seed(0)
    found = Inputs([], [], [], [])
    for _ in range(batch):
        coarse = torch.rand(3, size // 16 + 1, size // 16 + 1, generator=random)
        fine = coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :size, :size]
        found.images.append((200 * fine + 55 * torch.rand(3, size, size, generator=random)).round())
        low = torch.rand(OBJECTS, 2, generator=random) * 0.6 * size
        side = (0.08 + 0.3 * torch.rand(OBJECTS, 2, generator=random)) * size
        found.boxes.append(torch.cat([low, low + side], dim=1))
        found.classes.append(torch.randint(0, 20, (OBJECTS,), generator=random))
        angles = np.arange(8) * np.pi / 4
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) / 2 + 0.5
        outlines = low.numpy()[:, None] + circle * side.numpy()[:, None]
        found.polygons.append([[outline.reshape(-1).astype(np.float64)] for outline in outlines])
    return found
