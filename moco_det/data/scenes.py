"""The procedural data set: textured scenes on which a detector can be tried anywhere.

A class is a form with a surface (a striped disk, a checked square); forms and surfaces recur among
the classes and in the clutter, and colours are random, so neither colour nor form nor surface
alone tells the class. Masks, boxes and areas are those of the visible part of an object, as COCO's
are: what something in front hides, or the image's edge cuts off, is not annotated.

The unlabelled pictures are close-ups, one object each, as ImageNet's are beside COCO's scenes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from tqdm import tqdm

from moco_det.data.catalog_names import absolute, coco_uri, voc_uri
from moco_det.data.image import write_jpeg
from moco_det.data.masks import mask_polygons
from moco_det.data.scene_painter import paint_close_up, paint_scene
from moco_det.data.scene_shapes import CLASSES
from moco_det.foundation.atomic import new_folder

SCENE_CLASSES = tuple(CLASSES)

# Part of every image's seed; a change of the painter that changes pixels raises it.
VERSION = 1
_SPLITS = ("unlabelled", "train", "test")


class ScenesPaths(NamedTuple):
    """Where `write_scenes` put things. `unlabelled` is a plain folder of close-ups.

    `train` and `test` are the data set names of the labelled images (COCO, with masks),
    `voc_train` and `voc_test` those of the same images and boxes in VOC layout.
    """

    root: Path
    unlabelled: Path
    train_json: Path
    train_images: Path
    test_json: Path
    test_images: Path
    train: str
    test: str
    voc_train: str
    voc_test: str
    classes: tuple[str, ...]


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

    `size`, at least 48, is the side of the square scenes in pixels, the close-ups' is half of it;
    `objects` the least and most objects in a scene. A folder that holds the data set of the same
    arguments is left as it is. The folder appears complete or not at all. Raises InputError where
    it holds something else.
    """
    counts = {"unlabelled": unlabelled, "train": train, "test": test}
    recipe: dict[str, Any] = {
        "version": VERSION,
        "seed": int(seed),
        "counts": counts,
        "size": int(size),
        "close_up_size": int(size) // 2,
        "classes": list(classes),
        "objects": list(objects),
    }
    root = absolute(out_dir)
    coco, voc = root / "coco", root / "voc"
    jsons = [coco / "annotations" / f"{split}.json" for split in ("train", "test")]
    paths = ScenesPaths(
        root=root,
        unlabelled=root / "unlabelled",
        train_json=jsons[0],
        train_images=coco / "train",
        test_json=jsons[1],
        test_images=coco / "test",
        train=coco_uri(jsons[0], coco / "train"),
        test=coco_uri(jsons[1], coco / "test"),
        voc_train=voc_uri(voc, "train"),
        voc_test=voc_uri(voc, "test"),
        classes=tuple(classes),
    )
    if _holds(root, recipe):
        return paths
    options = {"desc": "painting scenes", "unit": "img", "mininterval": 1, "disable": not progress}
    bar = tqdm(total=sum(counts.values()), **options)
    with new_folder(root) as folder, bar:
        (folder / "unlabelled").mkdir()
        for number in range(1, unlabelled + 1):
            rng = scene_rng(seed, "unlabelled", number)
            image = paint_close_up(rng, recipe["close_up_size"], classes)
            write_jpeg(folder / "unlabelled" / f"{number:06d}.jpg", image[:, :, ::-1])
            bar.update()
        for split in ("train", "test"):
            _write_split(folder, split, recipe, bar)
        (folder / "scenes.json").write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
    return paths


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """What decides an image of a split; seeded apart from all others, so any can be made alone."""
    return np.random.default_rng([VERSION, seed, _SPLITS.index(split), index])


def _holds(root: Path, recipe: dict[str, Any]) -> bool:
    try:
        return bool(json.loads((root / "scenes.json").read_text(encoding="utf-8")) == recipe)
    except (OSError, ValueError):
        return False


def _write_split(folder: Path, split: str, recipe: dict[str, Any], bar: tqdm) -> None:
    """The images of a split, its json, and the same in VOC layout."""
    images, annotations = folder / "coco" / split, folder / "coco" / "annotations"
    xmls, jpegs = folder / "voc" / "Annotations", folder / "voc" / "JPEGImages"
    sets = folder / "voc" / "ImageSets" / "Main"
    for made in (images, annotations, xmls, jpegs, sets):
        made.mkdir(parents=True, exist_ok=True)
    seed, classes, side = recipe["seed"], recipe["classes"], recipe["size"]
    objects, names = tuple(recipe["objects"]), []
    coco: dict[str, Any] = {
        "info": {"description": f"procedural scenes, {split}, seed {seed}"},
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": n} for i, n in enumerate(classes, start=1)],
    }
    for number in range(1, recipe["counts"][split] + 1):
        painted = paint_scene(scene_rng(seed, split, number), side, classes, objects)
        file, name = images / f"{number:06d}.jpg", f"{split}_{number:06d}"
        write_jpeg(file, painted.image[:, :, ::-1])
        shutil.copyfile(file, jpegs / f"{name}.jpg")
        coco["images"].append({"id": number, "file_name": file.name, "height": side, "width": side})
        size = {"width": side, "height": side, "depth": 3}
        voc: dict[str, Any] = {
            "filename": f"{name}.jpg",
            "size": size,
            "segmented": 0,
            "object": [],
        }
        for place, (label, cut) in enumerate(zip(painted.labels, painted.truncated, strict=True)):
            mask = painted.owner == place + 1
            columns, rows = (np.flatnonzero(mask.any(axis=axis)).tolist() for axis in (0, 1))
            x0, y0, x1, y1 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": number,
                    "category_id": classes.index(label) + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": mask_polygons(mask),
                }
            )
            box = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}
            flags = {"pose": "Unspecified", "truncated": int(cut), "difficult": 0}
            voc["object"].append({"name": label, **flags, "bndbox": box})
        xml = _xml("annotation", voc)
        ElementTree.indent(xml)
        text = ElementTree.tostring(xml, encoding="unicode")
        (xmls / f"{name}.xml").write_text(f"{text}\n", encoding="utf-8")
        names.append(f"{name}\n")
        bar.update()
    (annotations / f"{split}.json").write_text(json.dumps(coco) + "\n", encoding="utf-8")
    (sets / f"{split}.txt").write_text("".join(names), encoding="utf-8")


def _xml(tag: str, content: Any) -> ElementTree.Element:
    """An element per key of a dict, several where its value is a list."""
    element = ElementTree.Element(tag)
    if not isinstance(content, dict):
        element.text = str(content)
        return element
    for key, value in content.items():
        element.extend(_xml(key, one) for one in (value if isinstance(value, list) else [value]))
    return element
