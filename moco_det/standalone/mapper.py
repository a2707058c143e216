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

BILINEAR = Image.Resampling.BILINEAR
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
class Movement:
    """How an image was resized to ``size`` (height, width) and then mirrored.

    ``scale`` is that of x and y; ``mirror`` 1 is left to right, 0 upside down.
    """

    scale: tuple[float, float]
    mirror: int | None
    size: tuple[int, int]

    def image(self, image: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
        """Pixels (H, W, ...) moved."""
        if image.shape[:2] != self.size:
            picture = Image.fromarray(np.ascontiguousarray(image))
            image = np.asarray(picture.resize(self.size[::-1], resampling))
        return image if self.mirror is None else np.flip(image, axis=self.mirror)

    def points(self, points: Sequence[float]) -> np.ndarray:
        """Points (x, y, x, y, ...) moved along with the pixels."""
        moved = np.asarray(points, dtype=np.float64).reshape(-1, 2) * self.scale
        if self.mirror is not None:
            column = 1 - self.mirror
            moved[:, column] = self.size[self.mirror] - moved[:, column]
        return moved.reshape(-1)


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
        size = resized_shape(height, width, self.short_edge(random), self.max_size)
        moved = Movement((size[1] / width, size[0] / height), self.mirror(random), size)
        # always a copy: of a mirrored image one pixel wide, numpy's contiguous is no torch's
        pixels = np.array(moved.image(image, BILINEAR).transpose(2, 0, 1), order="C")
        targets = self.targets(record, moved) if self.train else None
        return Sample(
            torch.from_numpy(pixels), record.height, record.width, record.image_id, targets
        )

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
        assert random is not None
        if self.sampling == "range":
            return int(random.randint(self.min_sizes[0], self.min_sizes[1] + 1))
        return int(random.choice(list(self.min_sizes)))

    def mirror(self, random: np.random.RandomState | None) -> int | None:
        if not self.train or self.flip == "none":
            return None
        assert random is not None
        axis = 1 if self.flip == "horizontal" else 0
        return axis if random.uniform(0.0, 1.0) < 0.5 else None

    def targets(self, record: Record, moved: Movement) -> Targets:
        """Objects in the pixels of the transformed image; crowds and empty boxes are left out."""
        boxes, classes, masks = [], [], []
        for annotation in record.annotations:
            if annotation.iscrowd:
                continue
            corners = np.sort(moved.points(annotation.bbox).reshape(2, 2), axis=0)
            corners = corners.clip(0, moved.size[::-1])
            if (corners[1] - corners[0] <= SMALLEST_SIDE).any():
                continue
            if self.with_masks:
                mask = self.mask(annotation, moved)
                if len(mask) == 0 or (isinstance(mask, np.ndarray) and not mask.any()):
                    continue
                masks.append(mask)
            boxes.append(corners.reshape(-1))
            classes.append(annotation.category)
        return Targets(
            torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
            torch.tensor(classes, dtype=torch.int64),
            masks if self.with_masks else None,
        )

    def mask(self, annotation: Annotation, moved: Movement) -> Mask:
        segmentation = annotation.segmentation
        if isinstance(segmentation, list):
            polygons = [moved.points(polygon) for polygon in segmentation]
            if self.mask_format == "polygon" or not polygons:
                return polygons
            encoded = coco_mask.merge(coco_mask.frPyObjects(polygons, *moved.size))
            return coco_mask.decode(encoded).astype(bool)
        return moved.image(coco_mask.decode(segmentation), Image.Resampling.NEAREST).astype(bool)
