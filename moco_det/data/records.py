"""What every reader returns and every other part reads: images, their objects, their classes.

Boxes are xyxy floats in absolute pixels and continuous coordinates: the whole image is
(0, 0, width, height). A class is an index 0..C-1 into `DetectionDataset.classes`.
"""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import MOST_IMAGE, read_regular

Polygons = list[list[float]]
Segmentation = Polygons | dict[str, Any] | None

# Above this many images the bytes of the images are not part of the fingerprint.
FINGERPRINT_BYTES_LIMIT = 2000


@dataclass(frozen=True)
class Annotation:
    """One object.

    `segmentation`: polygons [[x, y, x, y, ...], ...] in pixels, or a compressed RLE
    {"size": [height, width], "counts": str}, or None; no polygon, [], is a mask that is not known:
    the object is none where masks are trained or scored. `area`: square pixels, of the mask where
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
    A set in VOC's `layout` is scored by VOC's metric too, and `voc_metric` is which AP that is.
    `skipped` holds one counted message per kind of thing that was dropped or corrected. `share` is
    the same for all folds of one share of a set, and "" of whole sets.
    """

    name: str
    uri: str
    records: tuple[Record, ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    has_masks: bool = False
    layout: Literal["coco", "voc"] = "coco"
    skipped: tuple[str, ...] = ()
    voc_metric: Literal["2007", "area"] = "area"
    share: str = ""

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
            content = read_regular(file_name, MOST_IMAGE)
            digest.update(struct.pack("<q", len(content)))
            digest.update(hashlib.sha256(content).digest())
        else:
            digest.update(os.path.basename(file_name).encode())
            digest.update(struct.pack("<q", os.path.getsize(file_name)))
    except OSError as error:
        raise InputError(f"cannot read image {file_name}: {error.strerror or error}") from error


def concatenate(datasets: Iterable[DetectionDataset]) -> DetectionDataset:
    """One data set out of one or more with the same classes and layout.

    Image ids that occur in more than one of them become "<position>:<id>".
    """
    first, *others = parts = list(datasets)
    if not others:
        return first
    for other in others:
        for what, mine, theirs in (
            ("layout", (first.layout,), (other.layout,)),
            ("classes", first.classes, other.classes),
            ("category ids", first.category_ids, other.category_ids),
        ):
            if mine != theirs:
                raise InputError(
                    f"{first.name} and {other.name} differ in {what} ({listed(mine)}; "
                    f"{listed(theirs)}): data sets that are used together must agree"
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
        share=_joint_share(parts),
    )


def _joint_share(parts: Sequence[DetectionDataset]) -> str:
    if not any(part.share for part in parts):
        return ""
    return " + ".join(part.share or part.fingerprint for part in parts)


def listed(values: Iterable[object], limit: int = 12) -> str:
    """The first of them and how many more there are."""
    names = [str(value) for value in values]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def unknown_class(what: str, classes: Sequence[str]) -> InputError:
    """The refusal of an object whose class the training set does not have."""
    return InputError(
        f"{what} is not among the training classes {listed(classes)}: add training images of it, "
        "or take these objects out"
    )
