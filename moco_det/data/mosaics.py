"""Pre-training, probing and detection sets from photos with one box each, as Tiny-ImageNet has.

    SOURCE/train/<class>/images/*.JPEG
    SOURCE/train/<class>/<class>_boxes.txt    name, x0, y0, x1, y1; the corner x1, y1 is inside

A mosaic is filled by photos, each resized to a cell of its own and annotated by its box: nothing
but photos is seen, and all of them are of annotated classes. What a photo shows beside its box is
not annotated, as in its source. Every part has photos of its own; none is in two.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from moco_det.data.catalog_names import absolute
from moco_det.data.image import read_image
from moco_det.data.write_layouts import (
    DrawnImage,
    DrawnObject,
    holds_recipe,
    layout_names,
    write_layouts,
)
from moco_det.foundation.atomic import new_folder
from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import MOST_IMAGE, MOST_LABELS, read_regular, read_text

logger = logging.getLogger(__name__)

# Part of every seed; a change that changes what is drawn raises it.
VERSION = 1
_DRAWS = ("classes", "photos", "train", "test")
LAYOUT = "the folder holds train/<class>/images/ and train/<class>/<class>_boxes.txt"

# A cell's side beside the others of its row or column: 1 to 1.5 times.
UNEVEN = 0.5

Cell = tuple[int, int, int, int]


class MosaicPaths(NamedTuple):
    """Where `write_mosaics` put things.

    `photos`, the probes and the unseen are folders with one sub-folder per class; the unseen are
    None where no class is held back. `train`, `test`, `voc_train` and `voc_test` are the data set
    names of the mosaics, `classes` theirs.
    """

    root: Path
    photos: Path
    probe_train: Path
    probe_test: Path
    unseen_train: Path | None
    unseen_test: Path | None
    train: str
    test: str
    voc_train: str
    voc_test: str
    classes: tuple[str, ...]


class BoxedPhoto(NamedTuple):
    """A photo, its class and its object: x0, y0, x1, y1 in pixels, x1 and y1 exclusive."""

    path: Path
    label: str
    box: Cell


def write_mosaics(
    source: str | Path,
    out_dir: str | Path,
    *,
    seed: int,
    pretrain: int = 75,
    unseen: int = 0,
    classes: int = 20,
    train: int = 400,
    test: int = 300,
    size: int = 192,
    probe: tuple[int, int] = (50, 25),
    progress: bool = True,
) -> MosaicPaths:
    """Write the sets into a new folder; the same arguments give the same bytes.

        photos/<class>/      `pretrain` photos per class, to pre-train on with labels or without
        probe/train/<class>/ and probe/test/<class>/      `probe` photos per class
        unseen/train/<class>/ and unseen/test/<class>/    the same of the classes held back
        coco/ and voc/       `train` and `test` mosaics of `size` px, of `classes` classes

    The last `unseen` classes of a seeded order are held back from everything else; the mosaics are
    of its first. `unseen` and `pretrain` change no mosaic and no probe, `train` no test set. With
    a `size` below 192 a box of a 64-px photo may come out one pixel wide, which VOC readers drop.

    A photo is left out, and the number logged, where it does not open, has no box with an area
    inside of it, or was drawn already under another name. A folder that holds the sets of the same
    arguments and source is left as it is. The folder appears complete or not at all. Raises
    InputError where it holds something else, or the source is no such folder or has too few photos.
    """
    by_class, left_out, fingerprint = _read_source(absolute(source))
    recipe: dict[str, Any] = {
        "version": VERSION,
        "seed": int(seed),
        "source": fingerprint,
        "pretrain": int(pretrain),
        "unseen": int(unseen),
        "classes": int(classes),
        "counts": {"train": int(train), "test": int(test)},
        "size": int(size),
        "probe": list(probe),
    }
    names = sorted(by_class)
    if classes + unseen > len(names):
        raise InputError(
            f"{source} has {len(names)} classes, fewer than the {classes} of the mosaics and "
            f"{unseen} unseen ones: lower classes or unseen"
        )
    order = [names[i] for i in mosaic_rng(seed, "classes", 0).permutation(len(names))]
    held_back, seen = order[len(order) - unseen :], order[: len(order) - unseen]
    shown = tuple(sorted(order[:classes]))
    root = absolute(out_dir)
    paths = MosaicPaths(
        root=root,
        photos=root / "photos",
        probe_train=root / "probe" / "train",
        probe_test=root / "probe" / "test",
        unseen_train=root / "unseen" / "train" if unseen else None,
        unseen_test=root / "unseen" / "test" if unseen else None,
        classes=shown,
        **layout_names(root),
    )
    if holds_recipe(root / "mosaics.json", recipe):
        return paths

    cells = {
        split: [arrange(mosaic_rng(seed, split, n), size) for n in range(1, count + 1)]
        for split, count in recipe["counts"].items()
    }
    each = {split: math.ceil(sum(map(len, cells[split])) / classes) for split in ("test", "train")}
    asked = {name: sum(probe) for name in held_back}
    asked |= {name: pretrain + sum(probe) for name in seen}
    asked |= {name: pretrain + sum(probe) + sum(each.values()) for name in shown}
    for name in order:
        if len(by_class[name]) < asked[name]:
            raise _too_few(name, len(by_class[name]), asked[name])

    total = sum(asked.values()) + train + test
    options = {"desc": "making mosaics", "unit": "img", "mininterval": 1, "disable": not progress}
    with new_folder(root) as folder, tqdm(total=total, **options) as bar:
        drawer = _Drawer(by_class, asked, seed, left_out, bar)
        for label in order:
            kind = "unseen" if label in held_back else "probe"
            for part, count in zip(("train", "test"), probe, strict=True):
                _copy(drawer.draw(label, count), folder / kind / part / label)
        for split, count in each.items():
            photos = [photo for label in shown for photo in drawer.draw(label, count)]
            shuffled = mosaic_rng(seed, split, 0).permutation(len(photos))
            drawn = _drawn([photos[i] for i in shuffled], cells[split], size, bar)
            description = f"mosaics of photos, {split}, seed {seed}"
            write_layouts(folder, split, drawn, shown, description)
        for label in seen:
            _copy(drawer.draw(label, pretrain, last=True), folder / "photos" / label)
        (folder / "mosaics.json").write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
    if left_out:
        logger.warning(
            "%d photos of %s are left out, %s the first: they do not open, have no box with an "
            "area inside of them, or are there under two names",
            *(len(left_out), source, left_out[0]),
        )
    return paths


def mosaic_rng(seed: int, draw: str, index: int) -> np.random.Generator:
    """What decides one draw: the order of classes, the order of a class's photos, a mosaic.

    Each is seeded apart from all others.
    """
    return np.random.default_rng([VERSION, seed, _DRAWS.index(draw), index])


def arrange(rng: np.random.Generator, size: int) -> list[Cell]:
    """Cells (x0, y0, x1, y1) that fill a square, with sides of 0.18 to 0.6 of it: four to ten.

    Two or three rows, or columns, of uneven height, each cut into as many cells as make them
    about square: none is longer than 1.6 times its width.
    """
    upright = rng.random() < 0.5
    cells = []
    for top, bottom in pairwise(_cuts(rng, size, int(rng.integers(2, 4)))):
        for left, right in pairwise(_cuts(rng, size, round(size / (bottom - top)))):
            cells.append((left, top, right, bottom) if upright else (top, left, bottom, right))
    return cells


def _cuts(rng: np.random.Generator, size: int, parts: int) -> list[int]:
    weights = 1 + UNEVEN * rng.random(parts)
    ends: list[int] = np.rint(weights.cumsum() / weights.sum() * size).astype(int).tolist()
    return [0, *ends]


def _drawn(
    photos: Sequence[BoxedPhoto], mosaics: Sequence[Sequence[Cell]], size: int, bar: tqdm
) -> Iterator[DrawnImage]:
    """Each mosaic takes the next photos, one per cell; a box holds every pixel it touches."""
    upcoming = iter(photos)
    for cells in mosaics:
        pixels, objects = np.empty((size, size, 3), np.uint8), []
        for (left, top, right, bottom), photo in zip(cells, upcoming, strict=False):
            stored = Image.fromarray(read_image(str(photo.path)))
            cell = (right - left, bottom - top)
            resized = stored.resize(cell, Image.Resampling.BICUBIC)
            pixels[top:bottom, left:right] = np.asarray(resized)
            across, down = cell[0] / stored.width, cell[1] / stored.height
            x0, y0, x1, y1 = photo.box
            corner = (left + math.floor(x0 * across), top + math.floor(y0 * down))
            end = (left + math.ceil(x1 * across), top + math.ceil(y1 * down))
            objects.append(DrawnObject(photo.label, (*corner, *end)))
        yield pixels, objects
        bar.update()


class _Drawer:
    """Hands out the photos of each class in a seeded order, each content once."""

    def __init__(
        self,
        by_class: dict[str, list[BoxedPhoto]],
        asked: dict[str, int],
        seed: int,
        left_out: list[str],
        bar: tqdm,
    ) -> None:
        self.asked, self.left_out, self.bar = asked, left_out, bar
        self.contents: set[bytes] = set()
        self.piles = {
            label: deque(photos[i] for i in mosaic_rng(seed, "photos", n).permutation(len(photos)))
            for n, (label, photos) in enumerate(sorted(by_class.items()))
        }
        self.there = {label: len(pile) for label, pile in self.piles.items()}

    def draw(self, label: str, count: int, *, last: bool = False) -> list[BoxedPhoto]:
        """The next usable photos of a class; with `last` from the end of its order."""
        pile = self.piles[label]
        drawn: list[BoxedPhoto] = []
        while len(drawn) < count:
            if not pile:
                raise _too_few(label, self.there[label], self.asked[label])
            photo = pile.pop() if last else pile.popleft()
            if self._usable(photo):
                drawn.append(photo)
                self.bar.update()
            else:
                self.left_out.append(photo.path.name)
                self.there[label] -= 1
        return drawn

    def _usable(self, photo: BoxedPhoto) -> bool:
        try:
            content = hashlib.sha256(read_regular(photo.path, MOST_IMAGE)).digest()
            height, width = read_image(str(photo.path)).shape[:2]
        except (OSError, InputError):
            return False
        new = content not in self.contents
        self.contents.add(content)
        return new and photo.box[2] <= width and photo.box[3] <= height


def _copy(photos: Sequence[BoxedPhoto], folder: Path) -> None:
    folder.mkdir(parents=True)
    for photo in photos:
        shutil.copyfile(photo.path, folder / photo.path.name)


def _read_source(
    source: Path,
) -> tuple[dict[str, list[BoxedPhoto]], list[str], dict[str, int | str]]:
    """Each class's photos with a box that has an area, the names of the others, a fingerprint."""
    train = source / "train"
    if not train.is_dir():
        raise InputError(f"{train} does not exist: check the path of the photos ({LAYOUT})")
    by_class: dict[str, list[BoxedPhoto]] = {}
    left_out, digest = [], hashlib.sha256()
    for folder in sorted(path for path in train.iterdir() if path.is_dir()):
        images = folder / "images"
        if not images.is_dir():
            raise InputError(f"{images} does not exist: check the path of the photos ({LAYOUT})")
        text = read_text(folder / f"{folder.name}_boxes.txt", "list of boxes", MOST_LABELS)
        digest.update(f"{folder.name}\n{text}\n".encode())
        boxes = {name: rest for name, *rest in map(str.split, text.splitlines()) if rest}
        by_class[folder.name] = photos = []
        for name in sorted(os.listdir(images)):
            box = _box(boxes.get(name, []))
            if box is None:
                left_out.append(name)
            else:
                photos.append(BoxedPhoto(images / name, folder.name, box))
    if not by_class:
        raise InputError(f"{train} has no folders of classes: check the path ({LAYOUT})")
    count = sum(map(len, by_class.values()))
    return by_class, left_out, {"photos": count, "boxes": digest.hexdigest()}


def _box(numbers: Sequence[str]) -> Cell | None:
    """The box of a line's four numbers, or None where they give none with an area."""
    try:
        x0, y0, x1, y1 = map(int, numbers)
    except ValueError:
        return None
    return (x0, y0, x1 + 1, y1 + 1) if 0 <= x0 < x1 and 0 <= y0 < y1 else None


def _too_few(label: str, there: int, asked: int) -> InputError:
    return InputError(
        f"class {label} has {there} photos that can be used and {asked} are asked of it: lower "
        "pretrain or probe; for its share of the mosaics lower train or test, or raise classes"
    )
