"""predictions.json, the file between an engine and scoring: COCO result rows, for VOC too.

A row: {"image_id", "category_id", "bbox": [x, y, width, height], "score", "segmentation"?}, with
the data set's own ids, absolute pixels, and a compressed RLE {"size", "counts"} as segmentation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask

from moco_det.data.masks import whole_masks
from moco_det.data.records import DetectionDataset, listed
from moco_det.foundation.atomic import write_text
from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import read_json
from moco_det.scoring.arrays import LARGEST, DetectionArrays, detections_of

Row = dict[str, Any]


def result_rows(
    dataset: DetectionDataset,
    image_id: int | str,
    boxes: npt.ArrayLike,
    scores: npt.ArrayLike,
    classes: npt.ArrayLike,
    masks: npt.ArrayLike | None = None,
) -> list[Row]:
    """Rows of one image. boxes (N, 4) xyxy, scores (N,), classes (N,) contiguous, masks (N, H, W)
    boolean of the image's own size."""
    columns = (
        np.asarray(boxes, dtype=np.float64).reshape(-1, 4).tolist(),
        np.asarray(scores, dtype=np.float64).tolist(),
        np.asarray(classes).astype(np.int64).tolist(),
    )
    rows: list[Row] = [
        {
            "image_id": image_id,
            "category_id": dataset.category_ids[category],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
        }
        for (x0, y0, x1, y1), score, category in zip(*columns, strict=True)
    ]
    if masks is not None:
        for row, mask in zip(rows, np.asarray(masks), strict=True):
            rle = pycocotools.mask.encode(np.asfortranarray(mask, dtype=np.uint8))
            size = [int(side) for side in rle["size"]]
            row["segmentation"] = {"size": size, "counts": rle["counts"].decode("ascii")}
    return rows


def write_predictions(path: str | Path, rows: Iterable[Row]) -> None:
    """Write rows as one json list, one per line; the file is whole or not there."""
    lines = ",\n".join(json.dumps(row, allow_nan=False, default=_plain) for row in rows)
    write_text(path, f"[{lines}]\n")


def _plain(value: Any) -> Any:
    """What json cannot write: numpy's arrays and numbers, and the bytes of a mask."""
    return value.decode("ascii") if isinstance(value, bytes) else value.tolist()


def read_predictions(path: str | Path, dataset: DetectionDataset) -> list[Row]:
    """Rows of a file of predictions of this data set; InputError names the file and the row."""
    rows = read_json(Path(path), "predictions file")
    if not isinstance(rows, list):
        raise InputError(f"predictions file {path} is no list of COCO result rows")
    check_predictions(rows, dataset, source=f"predictions file {path}")
    return rows


def check_predictions(
    rows: list[Row], dataset: DetectionDataset, *, source: str = "predictions"
) -> DetectionArrays:
    """The rows as arrays; InputError naming the first that is malformed or does not fit the data
    set. All are checked at once, and one by one only where something is wrong."""
    sizes = {record.image_id: [record.height, record.width] for record in dataset.records}
    found = detections_of(dataset, rows)
    if found is not None:
        masks = [(m, sizes[row["image_id"]]) for row in rows if (m := row.get("segmentation"))]
        shaped = all(_is_rle(mask) and list(mask["size"]) == size for mask, size in masks)
        pixels = [height * width for _, (height, width) in masks]
        if shaped and whole_masks([mask["counts"] for mask, _ in masks], pixels).all():
            return found
    for position, row in enumerate(rows):
        fault = _fault(row, sizes, dataset)
        if fault is not None:
            raise InputError(
                f"{source}: row {position} has {fault}: are these predictions of this data set?"
            )
    raise AssertionError(f"{source}: a row does not fit and no check names it")


def _fault(row: Any, sizes: Mapping[int | str, list[int]], dataset: DetectionDataset) -> str | None:
    if not isinstance(row, dict):
        return "no fields"
    image_id, category, box = row.get("image_id"), row.get("category_id"), row.get("bbox")
    if not isinstance(image_id, (int, str)) or image_id not in sizes:
        return f"image_id {image_id!r}, which {dataset.name} does not have"
    if not isinstance(category, int) or category not in dataset.category_ids:
        known = listed(sorted(dataset.category_ids))
        return f"category_id {category!r}, which {dataset.name} does not have (it has {known})"
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(map(_finite, box)):
        return f"bbox {box!r}, not four numbers within 1e9"
    if not _finite(row.get("score")):
        return f"score {row.get('score')!r}, not a finite number"
    mask = row.get("segmentation")
    if not mask:
        return None
    if not _is_rle(mask):
        return "a segmentation that is not a compressed RLE"
    height, width = sizes[image_id]
    if list(mask["size"]) != [height, width]:
        return f"a mask of size {mask['size']} for image {image_id!r} of size {[height, width]}"
    if not whole_masks([mask["counts"]], [height * width]).all():
        return f"a damaged mask, its runs do not fill its size {mask['size']}"
    return None


def _is_rle(mask: Any) -> bool:
    return (
        isinstance(mask, dict)
        and isinstance(mask.get("size"), (list, tuple))
        and all(type(side) is int for side in mask["size"])
        and isinstance(mask.get("counts"), (str, bytes))
    )


def _finite(value: Any) -> bool:
    number = isinstance(value, (int, float, np.floating, np.integer))
    return number and not isinstance(value, bool) and -LARGEST <= value <= LARGEST
