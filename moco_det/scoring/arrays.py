"""A data set's objects and an engine's rows as arrays, the form in which they are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moco_det.data.records import DetectionDataset

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

LARGEST = 1e9  # number in a detection's box or score: squares of larger ones lose their meaning


class ObjectArrays(NamedTuple):
    """The truth: N objects by image position and class index.

    `box` (N, 4) xyxy, `area` as annotated, `ignored` crowds and difficult ones, `maskless` those
    whose mask is not known.
    """

    image: Ints
    category: Ints
    box: Floats
    area: Floats
    crowd: Bools
    ignored: Bools
    maskless: Bools


class DetectionArrays(NamedTuple):
    """What was found: N detections by image position and class index; `box` (N, 4) xywh."""

    image: Ints
    category: Ints
    box: Floats
    score: Floats

    def at(self, order: Ints) -> DetectionArrays:
        """Those at these positions."""
        return DetectionArrays(
            self.image[order], self.category[order], self.box[order], self.score[order]
        )


def objects_of(dataset: DetectionDataset) -> ObjectArrays:
    """All annotations of a data set in reading order."""
    rows = [
        (i, a.category, a.iscrowd, a.difficult, a.segmentation == [], a.area, *a.bbox)
        for i, record in enumerate(dataset.records)
        for a in record.annotations
    ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 10)
    crowd = table[:, 2].astype(bool)
    return ObjectArrays(
        image=table[:, 0].astype(np.int64),
        category=table[:, 1].astype(np.int64),
        box=table[:, 6:],
        area=table[:, 5],
        crowd=crowd,
        ignored=crowd | table[:, 3].astype(bool),
        maskless=table[:, 4].astype(bool),
    )


def detections_of(
    dataset: DetectionDataset, rows: Sequence[Mapping[str, Any]]
) -> DetectionArrays | None:
    """The rows as arrays, or None where some row is malformed or not of this data set."""
    image = {record.image_id: i for i, record in enumerate(dataset.records)}
    category = {own: c for c, own in enumerate(dataset.category_ids)}
    try:
        found = DetectionArrays(
            image=_looked_up(image, rows, "image_id"),
            category=_looked_up(category, rows, "category_id"),
            box=_numbers([row["bbox"] for row in rows]).reshape(-1, 4),
            score=_numbers([row["score"] for row in rows]).reshape(-1),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    whole = len(found.box) == len(found.score) == len(rows)
    finite = (abs(found.box) <= LARGEST).all() and np.isfinite(found.score).all()
    return found if whole and finite else None


def _looked_up(table: Mapping[Any, int], rows: Sequence[Mapping[str, Any]], key: str) -> Ints:
    return np.fromiter((table[row[key]] for row in rows), dtype=np.int64, count=len(rows))


def _numbers(values: list[Any]) -> Floats:
    """As float64; ValueError or TypeError for what is no number."""
    table = np.array(values) if values else np.zeros(0)
    if table.dtype.kind not in "fiuO":  # asked for floats, numpy would read them out of text
        raise ValueError(f"not numbers but {table.dtype}")
    return table.astype(np.float64, copy=False)
