"""A record on disk to what the detector eats: image tensor and targets.

The numbers are those of detectron2's default mapper: PIL bilinear resize of the shortest edge,
then the flip, boxes and polygons moved along with the pixels. All randomness comes from the
generator given, in detectron2's order of draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from moco_det.data import Annotation, Record, read_image
from moco_det.foundation.errors import InputError
from moco_det.standalone.masks import Mask
from moco_det.standalone.targets import Targets

# An object thinner than this after the resize has nothing left to learn from.
SMALLEST_SIDE = 1e-5


@dataclass
class Sample:
    """One input: image (3, H, W) uint8, targets in its pixels, and the original's size."""

    image: Tensor
    height: int
    width: int
    image_id: int | str
    targets: Targets | None = None


def resized_shape(height: int, width: int, short_edge: int, longest: int) -> tuple[int, int]:
    """Size after the shortest edge becomes ``short_edge``, unless the other exceeds ``longest``."""
    size = float(short_edge)
    scale = size / min(height, width)
    new_h, new_w = (size, scale * width) if height < width else (scale * height, size)
    if max(new_h, new_w) > longest:
        scale = longest / max(new_h, new_w)
        new_h, new_w = new_h * scale, new_w * scale
    # an image a thousand times as long as wide keeps a pixel of width
    return max(1, int(new_h + 0.5)), max(1, int(new_w + 0.5))


@dataclass(frozen=True)
class Mapper:
    """Records to samples, for training (random size and flip, targets) or for testing.

    ``min_sizes``: the shortest edge, chosen among them or, with ``sampling="range"``, between
    the two. ``image_format``: RGB or BGR.
    """

    train: bool
    min_sizes: Sequence[int]
    max_size: int
    sampling: Literal["choice", "range"]
    flip: Literal["horizontal", "vertical", "none"]
    image_format: Literal["RGB", "BGR"]
    with_masks: bool
    mask_format: Literal["polygon", "bitmask"]

    def __call__(
        self,
        record: Record,
        random: np.random.RandomState | None = None,
        image: npt.NDArray[np.uint8] | None = None,
    ) -> Sample:
        """Read and transform one image; ``random`` is needed where something is chosen.

        ``image`` is what ``read`` gave for this record, where that was kept.
        """
        if image is None:
            image = self.read(record)
        height, width = image.shape[:2]
        new_height, new_width = resized_shape(height, width, self.short_edge(random), self.max_size)
        if (new_height, new_width) != (height, width):
            picture = Image.fromarray(np.ascontiguousarray(image))
            image = np.asarray(picture.resize((new_width, new_height), Image.Resampling.BILINEAR))
        flipped = self.train and self.flip != "none" and self.toss(random)
        axis = 1 if self.flip == "horizontal" else 0
        if flipped:
            image = np.flip(image, axis=axis)
        # always a copy: of a mirrored image one pixel wide, numpy's contiguous is no torch's
        pixels = torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))
        sample = Sample(pixels, record.height, record.width, record.image_id)
        if self.train:
            scale = np.array([new_width / width, new_height / height])
            mirror = axis if flipped else None
            sample.targets = self.targets(record, scale, mirror, (new_height, new_width))
        return sample

    def read(self, record: Record) -> npt.NDArray[np.uint8]:
        """The image (H, W, 3) as it is on disk; InputError where its annotation says otherwise."""
        image = read_image(record.file_name, self.image_format)
        height, width = image.shape[:2]
        if (height, width) != (record.height, record.width):
            raise InputError(
                f"{record.file_name} is {width} x {height} pixels, its annotation says "
                f"{record.width} x {record.height}: correct the annotation"
            )
        return image

    def short_edge(self, random: np.random.RandomState | None) -> int:
        if not self.train:
            return int(self.min_sizes[0])
        if random is None:
            raise ValueError("training needs a random generator")
        if self.sampling == "range":
            return int(random.randint(self.min_sizes[0], self.min_sizes[1] + 1))
        return int(random.choice(list(self.min_sizes)))

    @staticmethod
    def toss(random: np.random.RandomState | None) -> bool:
        assert random is not None
        return bool(random.uniform(0.0, 1.0) < 0.5)

    def targets(
        self, record: Record, scale: np.ndarray, mirror: int | None, size: tuple[int, int]
    ) -> Targets:
        """Objects in the pixels of the transformed image; crowds and empty boxes are left out."""
        limit = np.array([size[1], size[0]], dtype=np.float64)
        boxes, classes, masks = [], [], []
        for annotation in record.annotations:
            if annotation.iscrowd:
                continue
            corners = move(np.array(annotation.bbox, dtype=np.float64), scale, mirror, size)
            corners = corners.reshape(2, 2)
            low, high = corners.min(axis=0), corners.max(axis=0)
            low, high = low.clip(min=0), np.minimum(high.clip(min=0), limit)
            low = np.minimum(low, limit)
            if (high - low <= SMALLEST_SIDE).any():
                continue
            mask = None
            if self.with_masks:
                mask = self.mask(record, annotation, scale, mirror, size)
                if len(mask) == 0 or (isinstance(mask, np.ndarray) and not mask.any()):
                    continue
            boxes.append(np.concatenate([low, high]))
            classes.append(annotation.category)
            masks.append(mask)
        return Targets(
            torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
            torch.tensor(classes, dtype=torch.int64),
            masks if self.with_masks else None,
        )

    def mask(
        self,
        record: Record,
        annotation: Annotation,
        scale: np.ndarray,
        mirror: int | None,
        size: tuple[int, int],
    ) -> Mask:
        segmentation = annotation.segmentation
        if segmentation is None:
            raise InputError(
                f"object {annotation.id} of {record.file_name} has no segmentation: "
                "set MODEL.MASK_ON False or annotate masks"
            )
        if isinstance(segmentation, list):
            polygons = [
                move(np.asarray(p, dtype=np.float64), scale, mirror, size) for p in segmentation
            ]
            if self.mask_format == "polygon":
                return polygons
            encoded = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
            return coco_mask.decode(encoded).astype(bool)
        if self.mask_format == "polygon":
            raise InputError(
                f"object {annotation.id} of {record.file_name} has a run-length mask: "
                "set INPUT.MASK_FORMAT bitmask"
            )
        bitmap = Image.fromarray(coco_mask.decode(segmentation))
        resized = np.asarray(bitmap.resize((size[1], size[0]), Image.Resampling.NEAREST))
        return (resized if mirror is None else np.flip(resized, axis=mirror)).astype(bool)


def move(
    points: np.ndarray, scale: np.ndarray, mirror: int | None, size: tuple[int, int]
) -> np.ndarray:
    """Points (x, y, x, y, ...) scaled, then mirrored: axis 1 left to right, axis 0 upside down."""
    moved = points.reshape(-1, 2) * scale
    if mirror == 1:
        moved[:, 0] = size[1] - moved[:, 0]
    elif mirror == 0:
        moved[:, 1] = size[0] - moved[:, 1]
    return moved.reshape(-1)
