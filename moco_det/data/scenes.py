"""The procedural data set: textured scenes on which a detector can be tried anywhere.

A class is a form with a surface (a striped disk, a checked square); forms and surfaces recur among
the classes and in the clutter, and colours are random, so neither colour nor form nor surface
alone tells the class. Masks, boxes and areas are those of the visible part of an object, as COCO's
are: what something in front hides, or the image's edge cuts off, is not annotated.

The unlabelled pictures are close-ups, one object each, as ImageNet's are beside COCO's scenes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from moco_det.data.catalog_names import coco_uri, voc_uri
from moco_det.data.outlines import mask_polygons
from moco_det.data.scene_painter import Scene, paint_close_up, paint_scene
from moco_det.data.scene_shapes import CLASSES
from moco_det.foundation.atomic import new_folder
from moco_det.foundation.errors import InputError

SCENE_CLASSES = tuple(CLASSES)

# Part of every image's seed; a change of the painter that changes pixels raises it.
VERSION = 1
JPEG_QUALITY = 95
_LABELLED = ("train", "test")
_SPLITS = ("unlabelled", *_LABELLED)


@dataclass(frozen=True)
class ScenesPaths:
    """Where `write_scenes` put things. `unlabelled` is a plain folder of close-ups."""

    root: Path
    unlabelled: Path
    train_json: Path
    train_images: Path
    test_json: Path
    test_images: Path
    voc: Path
    classes: tuple[str, ...]

    @property
    def train(self) -> str:
        """The data set name of the labelled training images (COCO, with masks)."""
        return coco_uri(self.train_json, self.train_images)

    @property
    def test(self) -> str:
        return coco_uri(self.test_json, self.test_images)

    @property
    def voc_train(self) -> str:
        """The same images and boxes in VOC layout."""
        return voc_uri(self.voc, "train")

    @property
    def voc_test(self) -> str:
        return voc_uri(self.voc, "test")


def write_scenes(
    out_dir: str | Path,
    *,
    seed: int,
    unlabelled: int = 2500,
    train: int = 100,
    test: int = 150,
    size: int = 128,
    classes: Sequence[str] = SCENE_CLASSES,
    objects: tuple[int, int] = (1, 5),
    progress: bool = True,
) -> ScenesPaths:
    """Write the data set into a new folder; the same arguments give the same bytes.

        unlabelled/000001.jpg ...           coco/annotations/{train,test}.json
        coco/{train,test}/000001.jpg ...    voc/{Annotations,ImageSets/Main,JPEGImages}

    `size` is the side of the square scenes in pixels, the close-ups' is half of it; `objects` the
    least and most objects in a scene. A folder that holds the data set of the same arguments is
    left as it is. The folder appears complete or not at all. Raises InputError for numbers that
    make no data set, and where the folder holds something else.
    """
    counts = dict(zip(_SPLITS, (unlabelled, train, test), strict=True))
    recipe = _checked_recipe(seed, counts, size, classes, objects)
    root = Path(os.path.abspath(out_dir))
    paths = ScenesPaths(
        root=root,
        unlabelled=root / "unlabelled",
        train_json=root / "coco" / "annotations" / "train.json",
        train_images=root / "coco" / "train",
        test_json=root / "coco" / "annotations" / "test.json",
        test_images=root / "coco" / "test",
        voc=root / "voc",
        classes=tuple(classes),
    )
    if _holds(root, recipe):
        return paths
    with (
        new_folder(root) as folder,
        tqdm(
            total=sum(counts.values()),
            desc="painting scenes",
            unit="img",
            mininterval=1,
            disable=not progress,
        ) as bar,
    ):
        _write_close_ups(folder / "unlabelled", recipe, bar)
        for split in _LABELLED:
            _write_split(folder, split, recipe, bar)
        (folder / "scenes.json").write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
    return paths


def scene(
    seed: int,
    split: str,
    index: int,
    *,
    size: int = 128,
    classes: Sequence[str] = SCENE_CLASSES,
    objects: tuple[int, int] = (1, 5),
) -> Scene:
    """One scene by its number; seeded apart from all others, so any can be made alone."""
    return paint_scene(_rng(seed, split, index), size, classes, objects)


def close_up(
    seed: int, index: int, *, size: int = 64, classes: Sequence[str] = SCENE_CLASSES
) -> npt.NDArray[np.uint8]:
    """One unlabelled picture by its number, (size, size, 3) RGB."""
    return paint_close_up(_rng(seed, "unlabelled", index), size, classes)


def _rng(seed: int, split: str, index: int) -> np.random.Generator:
    return np.random.default_rng([VERSION, seed, _SPLITS.index(split), index])


def _checked_recipe(
    seed: int, counts: dict[str, int], size: int, classes: Sequence[str], objects: tuple[int, int]
) -> dict[str, Any]:
    unknown = [name for name in classes if name not in CLASSES]
    if unknown or not classes:
        raise InputError(f"scene class {unknown or '(none)'} is not known: use {list(CLASSES)}")
    if seed < 0 or min(counts.values()) < 0 or size < 48 or not 1 <= objects[0] <= objects[1]:
        raise InputError(
            f"scenes with seed {seed}, {counts}, size {size}, objects {objects}: seed and counts "
            "must not be negative, size at least 48, objects a rising pair from 1"
        )
    return {
        "version": VERSION,
        "seed": int(seed),
        "counts": counts,
        "size": int(size),
        "close_up_size": int(size) // 2,
        "classes": list(classes),
        "objects": list(objects),
    }


def _holds(root: Path, recipe: dict[str, Any]) -> bool:
    try:
        return bool(json.loads((root / "scenes.json").read_text(encoding="utf-8")) == recipe)
    except (OSError, ValueError):
        return False


def _write_close_ups(folder: Path, recipe: dict[str, Any], bar: tqdm) -> None:
    folder.mkdir()
    for number in range(1, recipe["counts"]["unlabelled"] + 1):
        image = close_up(
            recipe["seed"], number, size=recipe["close_up_size"], classes=recipe["classes"]
        )
        _write_jpeg(folder / f"{number:06d}.jpg", image)
        bar.update()


def _write_split(folder: Path, split: str, recipe: dict[str, Any], bar: tqdm) -> None:
    images = folder / "coco" / split
    images.mkdir(parents=True)
    voc = folder / "voc"
    coco: dict[str, Any] = {
        "info": {"description": f"procedural scenes, {split}, seed {recipe['seed']}"},
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": n} for i, n in enumerate(recipe["classes"], start=1)],
    }
    count = recipe["counts"][split]
    for number in range(1, count + 1):
        painted = scene(
            recipe["seed"],
            split,
            number,
            size=recipe["size"],
            classes=recipe["classes"],
            objects=(recipe["objects"][0], recipe["objects"][1]),
        )
        file = images / f"{number:06d}.jpg"
        _write_jpeg(file, painted.image)
        rows = _annotations(painted, recipe["classes"])
        for row in rows:
            identity = {"id": len(coco["annotations"]) + 1, "image_id": number}
            coco["annotations"].append({**identity, **row})
        side = recipe["size"]
        coco["images"].append({"id": number, "file_name": file.name, "height": side, "width": side})
        _write_voc(voc, f"{split}_{number:06d}", file, painted, rows)
        bar.update()
    annotations = folder / "coco" / "annotations"
    annotations.mkdir(exist_ok=True)
    (annotations / f"{split}.json").write_text(json.dumps(coco) + "\n", encoding="utf-8")
    sets = voc / "ImageSets" / "Main"
    sets.mkdir(parents=True, exist_ok=True)
    names = "".join(f"{split}_{number:06d}\n" for number in range(1, count + 1))
    (sets / f"{split}.txt").write_text(names, encoding="utf-8")


def _write_jpeg(file: Path, image: npt.NDArray[np.uint8]) -> None:
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    done, content = cv2.imencode(".jpg", image[:, :, ::-1], options)
    if not done:
        raise RuntimeError("the JPEG encoder of OpenCV refused an image")
    file.write_bytes(content.tobytes())


def _annotations(painted: Scene, classes: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for index, label in enumerate(painted.labels):
        mask = painted.owner == index + 1
        columns = np.flatnonzero(mask.any(axis=0))
        lines = np.flatnonzero(mask.any(axis=1))
        x, y = int(columns[0]), int(lines[0])
        box = [x, y, int(columns[-1]) + 1 - x, int(lines[-1]) + 1 - y]
        rows.append(
            {
                "category_id": list(classes).index(label) + 1,
                "bbox": box,
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": mask_polygons(mask),
            }
        )
    return rows


def _write_voc(
    voc: Path, name: str, image: Path, painted: Scene, rows: list[dict[str, Any]]
) -> None:
    (voc / "Annotations").mkdir(parents=True, exist_ok=True)
    (voc / "JPEGImages").mkdir(exist_ok=True)
    try:
        os.link(image, voc / "JPEGImages" / f"{name}.jpg")
    except OSError:  # a file system without hard links
        shutil.copyfile(image, voc / "JPEGImages" / f"{name}.jpg")
    height, width = painted.owner.shape
    objects = ""
    for row, label, cut in zip(rows, painted.labels, painted.truncated, strict=True):
        x, y, w, h = row["bbox"]
        objects += (
            f"  <object>\n    <name>{escape(label)}</name>\n    <pose>Unspecified</pose>\n"
            f"    <truncated>{int(cut)}</truncated>\n    <difficult>0</difficult>\n"
            f"    <bndbox>\n      <xmin>{x + 1}</xmin>\n      <ymin>{y + 1}</ymin>\n"
            f"      <xmax>{x + w}</xmax>\n      <ymax>{y + h}</ymax>\n    </bndbox>\n"
            "  </object>\n"
        )
    (voc / "Annotations" / f"{name}.xml").write_text(
        f"<annotation>\n  <filename>{name}.jpg</filename>\n  <size>\n    <width>{width}</width>\n"
        f"    <height>{height}</height>\n    <depth>3</depth>\n  </size>\n"
        f"  <segmented>0</segmented>\n{objects}</annotation>\n",
        encoding="utf-8",
    )
