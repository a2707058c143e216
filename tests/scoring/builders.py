"""Data sets and predictions for the tests of scoring, in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from moco_det.data import Annotation, DetectionDataset, Record


def dataset_of(
    images: dict[int | str, list[tuple[Any, ...]]],
    classes: tuple[str, ...] = ("cat", "dog"),
    category_ids: tuple[int, ...] = (3, 7),
    side: int = 100,
    masks: bool = False,
    **fields: Any,
) -> DetectionDataset:
    """images: id -> [(class index, (x0, y0, x1, y1)[, flags])], flags of "difficult" "crowd"."""
    records = []
    for image_id, objects in images.items():
        annotations = []
        for category, box, *flags in objects:
            x0, y0, x1, y1 = box
            corners: list[list[float]] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
            annotations.append(
                Annotation(
                    tuple(float(c) for c in box),  # type: ignore[arg-type]
                    category,
                    iscrowd="crowd" in flags,
                    difficult="difficult" in flags,
                    area=float((x1 - x0) * (y1 - y0)),
                    segmentation=corners if masks else None,
                )
            )
        records.append(Record(image_id, f"/none/{image_id}.jpg", side, side, tuple(annotations)))
    return DetectionDataset(
        "made", "made", tuple(records), classes, category_ids, has_masks=masks, **fields
    )


def row(image_id: int | str, category_id: int, box: tuple[float, ...], score: float) -> dict:
    x0, y0, x1, y1 = box
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "score": score,
    }


def random_case(
    seed: int, images: int = 12, classes: int = 4, difficult: float = 0.2, integers: bool = True
) -> tuple[DetectionDataset, list[dict]]:
    """Objects, and detections that are objects moved a little, doubles and inventions."""
    rng = np.random.default_rng(seed)
    truth: dict[int | str, list[tuple[Any, ...]]] = {}
    rows = []
    names = tuple(f"c{i}" for i in range(classes))
    ids = tuple(10 + 3 * i for i in range(classes))
    for image in range(images):
        objects: list[tuple[Any, ...]] = []
        for _ in range(int(rng.integers(0, 6))):
            x, y = rng.integers(0, 60, 2)
            w, h = rng.integers(4, 40, 2)
            box = (int(x), int(y), int(x + w), int(y + h))
            flags = ("difficult",) if rng.random() < difficult else ()
            category = int(rng.integers(classes - 1))  # the last class never occurs
            objects.append((category, box, *flags))
            for _ in range(int(rng.integers(0, 4))):
                moved = np.array(box) + rng.normal(0, 3, 4)
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                if integers:
                    moved = np.round(moved)
                    moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                said = category if rng.random() < 0.9 else int(rng.integers(classes))
                score = float(rng.random())
                rows.append(row(f"i{image}", ids[said], tuple(moved.tolist()), score))
        truth[f"i{image}"] = objects
        if rng.random() < 0.5:
            rows.append(row(f"i{image}", ids[0], (70.0, 70.0, 95.0, 99.0), float(rng.random())))
    return dataset_of(truth, names, ids), rows
