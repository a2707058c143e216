"""predictions.json, the file between an engine and the rulers: COCO result rows, for VOC too.

A row: {"image_id", "category_id", "bbox": [x, y, width, height], "score", "segmentation"?}, with
the data set's own ids, absolute pixels, and a compressed RLE {"size", "counts"} as segmentation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask

from moco_det.data.records import DetectionDataset
from moco_det.data.rle import whole_masks
from moco_det.foundation.atomic import write_text
from moco_det.foundation.errors import InputError
from moco_det.scoring.arrays import Detections, detections_of

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
    xyxy = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    rows = [
        {
            "image_id": image_id,
            "category_id": dataset.category_ids[category],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
        }
        for (x0, y0, x1, y1), score, category in zip(
            xyxy.tolist(),
            np.asarray(scores, dtype=np.float64).tolist(),
            np.asarray(classes).astype(np.int64).tolist(),
            strict=True,
        )
    ]
    if masks is not None:
        for row, mask in zip(rows, np.asarray(masks), strict=True):
            rle = pycocotools.mask.encode(np.asfortranarray(mask, dtype=np.uint8))
            row["segmentation"] = {
                "size": [int(side) for side in rle["size"]],
                "counts": rle["counts"].decode("ascii"),
            }
    return rows


def write_predictions(path: str | Path, rows: Iterable[Row]) -> None:
    """Write rows as one json list, one row a line; the file is whole or not there."""
    lines = ",\n".join(json.dumps(_plain(row), allow_nan=False) for row in rows)
    write_text(path, f"[{lines}]\n")


def read_predictions(path: str | Path, dataset: DetectionDataset | None = None) -> list[Row]:
    """Rows of a predictions file, checked against the data set when one is given.

    Raises InputError naming the file and the row.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"predictions file {path} does not exist: check the path")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"predictions file {path} is not json ({error}): is it whole?") from error
    except OSError as error:
        raise InputError(f"predictions file {path} cannot be read ({error.strerror})") from error
    if not isinstance(rows, list):
        raise InputError(f"predictions file {path} is no list of COCO result rows")
    check_predictions(rows, dataset, source=f"predictions file {path}")
    return rows


def check_predictions(
    rows: list[Row], dataset: DetectionDataset | None, *, source: str = "predictions"
) -> None:
    """Raise InputError naming the first row that is malformed or does not fit the data set."""
    if dataset is None:
        _refuse(rows, None, source)
    else:
        checked_detections(rows, dataset, source=source)


def checked_detections(
    rows: list[Row], dataset: DetectionDataset, *, source: str = "predictions"
) -> Detections:
    """The rows as arrays; InputError naming the first that is malformed or does not fit the data
    set. All are checked at once, and one by one only where something is wrong."""
    found = detections_of(dataset, rows)
    if found is not None and _masks_fit(dataset, rows):
        return found
    _refuse(rows, dataset, source)
    raise AssertionError(f"{source}: a row does not fit and no check names it")


def _masks_fit(dataset: DetectionDataset, rows: list[Row]) -> bool:
    sizes = {record.image_id: [record.height, record.width] for record in dataset.records}
    masks = [(m, row["image_id"]) for row in rows if (m := row.get("segmentation")) is not None]
    shaped = all(
        isinstance(mask, dict)
        and isinstance(mask.get("counts"), (str, bytes))
        and isinstance(mask.get("size"), (list, tuple))
        and list(mask["size"]) == sizes[image_id]
        for mask, image_id in masks
    )
    return shaped and bool(
        whole_masks(
            [mask["counts"] for mask, _ in masks],
            [mask["size"][0] * mask["size"][1] for mask, _ in masks],
        ).all()
    )


def _refuse(rows: list[Row], dataset: DetectionDataset | None, source: str) -> None:
    sizes: dict[int | str, list[int]] = {}
    categories: set[int] = set()
    if dataset is not None:
        sizes = {r.image_id: [r.height, r.width] for r in dataset.records}
        categories = set(dataset.category_ids)
    for position, row in enumerate(rows):
        fault = _row_fault(row)
        if fault is None and dataset is not None:
            if row["image_id"] not in sizes:
                fault = f"image_id {row['image_id']!r}, which {dataset.name} does not have"
            elif row["category_id"] not in categories:
                known = ", ".join(str(i) for i in sorted(categories)[:12])
                fault = (
                    f"category_id {row['category_id']}, which {dataset.name} does not have "
                    f"(it has {known}{', ...' if len(categories) > 12 else ''})"
                )
            elif row.get("segmentation") and (
                list(row["segmentation"]["size"]) != sizes[row["image_id"]]
            ):
                fault = (
                    f"a mask of size {row['segmentation']['size']} for image "
                    f"{row['image_id']!r} of size {sizes[row['image_id']]}"
                )
        if fault is None and row.get("segmentation") and not _whole_mask(row["segmentation"]):
            fault = f"a damaged mask, its runs do not fill its size {row['segmentation']['size']}"
        if fault is not None:
            raise InputError(
                f"{source}: row {position} has {fault}: are these predictions of this data set?"
            )


def _row_fault(row: Any) -> str | None:
    if not isinstance(row, dict):
        return "no fields"
    if not isinstance(row.get("image_id"), (int, str)):
        return f"image_id {row.get('image_id')!r}"
    if not isinstance(row.get("category_id"), int):
        return f"category_id {row.get('category_id')!r}"
    bbox = row.get("bbox")
    if not isinstance(bbox, (list, tuple)) or len(bbox) != 4 or not all(map(_finite, bbox)):
        return f"bbox {bbox!r}, not four finite numbers"
    if not _finite(row.get("score")):
        return f"score {row.get('score')!r}, not a finite number"
    mask = row.get("segmentation")
    if mask is not None and not (
        isinstance(mask, dict)
        and isinstance(mask.get("size"), (list, tuple))
        and isinstance(mask.get("counts"), (str, bytes))
    ):
        return "a segmentation that is not a compressed RLE"
    return None


def _whole_mask(mask: dict[str, Any]) -> bool:
    sides = mask["size"]
    if len(sides) != 2 or not all(_finite(side) and 0 <= side < 2**31 for side in sides):
        return False
    return bool(whole_masks([mask["counts"]], [int(sides[0] * sides[1])]).all())


def _finite(value: Any) -> bool:
    number = isinstance(value, (int, float, np.floating, np.integer))
    return number and not isinstance(value, bool) and math.isfinite(value)


def _plain(row: Row) -> Row:
    plain = {
        "image_id": row["image_id"],
        "category_id": int(row["category_id"]),
        "bbox": [float(value) for value in row["bbox"]],
        "score": float(row["score"]),
    }
    if not isinstance(plain["image_id"], str):
        plain["image_id"] = int(plain["image_id"])
    if row.get("segmentation") is not None:
        counts = row["segmentation"]["counts"]
        plain["segmentation"] = {
            "size": [int(side) for side in row["segmentation"]["size"]],
            "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
        }
    return plain
