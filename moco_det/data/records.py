"""What every reader returns and every other part reads: images, their objects, their classes.

Boxes are xyxy floats in absolute pixels and continuous coordinates: the whole image is
(0, 0, width, height). A class is an index 0..C-1 into `DetectionDataset.classes`.
"""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from moco_det.foundation.errors import InputError

Polygons = list[list[float]]
Segmentation = Polygons | dict[str, Any] | None

# Above this many images the bytes of the images are not part of the fingerprint.
FINGERPRINT_BYTES_LIMIT = 2000


@dataclass(frozen=True)
class Annotation:
    """One object.

    `segmentation`: polygons [[x, y, x, y, ...], ...] in pixels, or a compressed RLE
    {"size": [height, width], "counts": str}, or None. `area`: square pixels, of the mask where
    there is one. `iscrowd`: a region of many objects (COCO). `difficult`: neither asked for nor
    counted as a mistake when scoring (VOC).
    """

    bbox: tuple[float, float, float, float]
    category: int
    iscrowd: bool = False
    difficult: bool = False
    area: float = 0.0
    segmentation: Segmentation = None
    id: int = 0


@dataclass(frozen=True)
class Record:
    """One image: `file_name` is absolute; height and width are those after EXIF orientation."""

    image_id: int | str
    file_name: str
    height: int
    width: int
    annotations: tuple[Annotation, ...] = ()


@dataclass(frozen=True)
class DetectionDataset:
    """Images with their objects, as read from disk.

    `category_ids[i]` is the data set's own id of `classes[i]`: predictions are written with it.
    `ruler` is how it is scored; `voc_metric` is which AP the VOC ruler takes. `skipped` holds one
    counted message for each kind of thing that was dropped or mended.
    """

    name: str
    uri: str
    records: tuple[Record, ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    has_masks: bool = False
    ruler: Literal["coco", "voc"] = "coco"
    skipped: tuple[str, ...] = ()
    voc_metric: Literal["2007", "area"] = "area"

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over classes, image ids, sizes, objects and image files; not over paths.

        Up to 2,000 images the bytes of every image are hashed; above that only each image's file
        name and size in bytes, because reading a hundred thousand images takes minutes.
        """
        digest = hashlib.sha256()
        digest.update(repr((self.classes, self.category_ids, len(self.records))).encode())
        whole = len(self.records) <= FINGERPRINT_BYTES_LIMIT
        for record in self.records:
            digest.update(repr((record.image_id, record.height, record.width)).encode())
            for annotation in record.annotations:
                _hash_annotation(digest, annotation)
            _hash_image(digest, record.file_name, whole)
        return digest.hexdigest()

    @property
    def objects(self) -> int:
        """Number of annotations, crowds included."""
        return sum(len(record.annotations) for record in self.records)


def _hash_annotation(digest: Any, a: Annotation) -> None:
    flags = int(a.iscrowd) + 2 * int(a.difficult)
    digest.update(struct.pack("<5dqq", *a.bbox, a.area, a.category, flags))
    if isinstance(a.segmentation, dict):
        digest.update(repr((a.segmentation["size"], a.segmentation["counts"])).encode())
    elif a.segmentation:
        for polygon in a.segmentation:
            digest.update(array("d", polygon).tobytes())
            digest.update(b"|")


def _hash_image(digest: Any, file_name: str, whole: bool) -> None:
    try:
        if whole:
            with open(file_name, "rb") as file:
                content = file.read()
            digest.update(struct.pack("<q", len(content)))
            digest.update(hashlib.sha256(content).digest())
        else:
            digest.update(os.path.basename(file_name).encode())
            digest.update(struct.pack("<q", os.path.getsize(file_name)))
    except OSError as error:
        raise InputError(f"cannot read image {file_name}: {error.strerror or error}") from error


def check_classes(train: DetectionDataset, test: DetectionDataset) -> None:
    """Raise InputError unless every object of `test` has a class of `train`, with the same index.

    Load the test set with `classes=train.classes`: then the indices agree and an unknown class is
    found by the reader.
    """
    used = {a.category for r in test.records for a in r.annotations}
    missing = [test.classes[i] for i in sorted(used) if test.classes[i] not in train.classes]
    if missing:
        names = ", ".join(repr(name) for name in missing)
        raise InputError(
            f"test set {test.name} has objects of class {names}, which training set {train.name} "
            f"lacks (it has {_listed(train.classes)}): add training images or drop these objects"
        )
    for i in sorted(used):
        if train.classes[i : i + 1] != test.classes[i : i + 1]:
            raise InputError(
                f"class {test.classes[i]!r} has index {i} in test set {test.name} and "
                f"{train.classes.index(test.classes[i])} in training set {train.name}: load the "
                "test set with the classes of the training set"
            )


def concatenate(datasets: Iterable[DetectionDataset]) -> DetectionDataset:
    """One data set out of several with the same classes and the same ruler.

    Image ids that occur in more than one of them become "<position>:<id>".
    """
    parts = list(datasets)
    if not parts:
        raise InputError("no data set is named: give at least one")
    first = parts[0]
    if len(parts) == 1:
        return first
    for other in parts[1:]:
        for what, mine, theirs in (
            ("layout", (first.ruler,), (other.ruler,)),
            ("classes", first.classes, other.classes),
            ("category ids", first.category_ids, other.category_ids),
        ):
            if mine != theirs:
                raise InputError(
                    f"{first.name} and {other.name} differ in {what} ({_listed(mine)}; "
                    f"{_listed(theirs)}): data sets that are used together must agree"
                )
    ids = [record.image_id for part in parts for record in part.records]
    clash = len(set(ids)) < len(ids)
    records = tuple(
        replace(record, image_id=f"{position}:{record.image_id}") if clash else record
        for position, part in enumerate(parts)
        for record in part.records
    )
    return replace(
        first,
        name=" + ".join(part.name for part in parts),
        uri=" ".join(part.uri for part in parts),
        records=records,
        has_masks=all(part.has_masks for part in parts),
        skipped=tuple(f"{part.name}: {line}" for part in parts for line in part.skipped),
        voc_metric="2007" if all(part.voc_metric == "2007" for part in parts) else "area",
    )


def _listed(values: Iterable[object], limit: int = 20) -> str:
    names = [str(value) for value in values]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
