"""Tiny data sets on disk, made by the tests themselves."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

VOC_OBJECT = (
    "<object><name>{name}</name>{difficult}<bndbox><xmin>{0}</xmin><ymin>{1}</ymin>"
    "<xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"
)


def digests(root: Path) -> dict[str, str]:
    """Each file below `root` with the hash of its content."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def write_image(path: Path, height: int = 20, width: int = 30, seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_voc(
    root: Path,
    images: dict[str, list[tuple[Any, ...]]],
    split: str = "train",
    suffix: str = ".jpg",
    size: tuple[int, int] = (20, 30),
) -> Path:
    """images: name -> [(class, xmin, ymin, xmax, ymax[, difficult]), ...] in VOC's own numbers."""
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    sets = root / "ImageSets" / "Main"
    sets.mkdir(parents=True, exist_ok=True)
    (sets / f"{split}.txt").write_text("".join(f"{name}\n" for name in images))
    for seed, (name, objects) in enumerate(images.items()):
        write_image(root / "JPEGImages" / f"{name}{suffix}", *size, seed=seed)
        rows = "".join(
            VOC_OBJECT.format(
                *box[:4],
                name=label,
                difficult=f"<difficult>{box[4]}</difficult>" if len(box) > 4 else "",
            )
            for label, *box in objects
        )
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>"
            f"{rows}</annotation>"
        )
    return root


def coco_content() -> dict[str, Any]:
    """Two images of 30x20, sparse category ids in disorder, a polygon, a crowd, an empty image."""
    return {
        "images": [
            {"id": 9, "file_name": "b.jpg", "height": 20, "width": 30},
            {"id": 4, "file_name": "a.jpg", "height": 20, "width": 30},
            {"id": 12, "file_name": "c.jpg", "height": 20, "width": 30},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {
                "id": 100,
                "image_id": 4,
                "category_id": 7,
                "bbox": [2, 3, 10, 5],
                "area": 50,
                "iscrowd": 0,
                "segmentation": [[2, 3, 12, 3, 12, 8, 2, 8]],
            },
            {
                "id": 101,
                "image_id": 9,
                "category_id": 3,
                "bbox": [0, 0, 1, 20],
                "area": 20,
                "iscrowd": 1,
                "segmentation": {"size": [20, 30], "counts": [0, 20, 580]},
            },
        ],
    }


def write_coco(root: Path, content: Any) -> tuple[Path, Path]:
    """The json and the image folder, with every image that the content lists."""
    root.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        write_image(root / "images" / image["file_name"], image["height"], image["width"])
    (root / "instances.json").write_text(json.dumps(content))
    return root / "instances.json", root / "images"
