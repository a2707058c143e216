"""The procedural data set: textured scenes on which a detector can be tried anywhere.

A class is a form with a surface (a striped disk, a checked square); forms and surfaces recur among
the classes and in the clutter, and colours are random, so neither colour nor form nor surface
alone tells the class. Masks, boxes and areas are those of the visible part of an object, as COCO's
are: what something in front hides, or the image's edge cuts off, is not annotated.

The unlabelled pictures are close-ups, one object each, as ImageNet's are beside COCO's scenes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from moco_det.data.catalog_names import absolute
from moco_det.data.image import write_jpeg
from moco_det.data.scene_painter import paint_close_up, paint_scene
from moco_det.data.scene_shapes import CLASSES
from moco_det.data.write_layouts import (
    DrawnImage,
    DrawnObject,
    holds_recipe,
    json_and_images,
    layout_names,
    write_layouts,
)
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
    (train_json, train_images), (test_json, test_images) = (
        json_and_images(root, split) for split in ("train", "test")
    )
    paths = ScenesPaths(
        root=root,
        unlabelled=root / "unlabelled",
        train_json=train_json,
        train_images=train_images,
        test_json=test_json,
        test_images=test_images,
        classes=tuple(classes),
        **layout_names(root),
    )
    if holds_recipe(root / "scenes.json", recipe):
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
            description = f"procedural scenes, {split}, seed {seed}"
            write_layouts(folder, split, _drawn(split, recipe, bar), classes, description)
        (folder / "scenes.json").write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
    return paths


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """What decides an image of a split; seeded apart from all others, so any can be made alone."""
    return np.random.default_rng([VERSION, seed, _SPLITS.index(split), index])


def _drawn(split: str, recipe: dict[str, Any], bar: tqdm) -> Iterator[DrawnImage]:
    classes, size, objects = recipe["classes"], recipe["size"], tuple(recipe["objects"])
    for number in range(1, recipe["counts"][split] + 1):
        scene = paint_scene(scene_rng(recipe["seed"], split, number), size, classes, objects)
        drawn = []
        for place, (label, cut) in enumerate(zip(scene.labels, scene.truncated, strict=True)):
            mask = scene.owner == place + 1
            columns, rows = (np.flatnonzero(mask.any(axis=axis)).tolist() for axis in (0, 1))
            box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            drawn.append(DrawnObject(label, box, cut, mask))
        yield scene.image, drawn
        bar.update()
