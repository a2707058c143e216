"""Which images there are: a folder, a text list, a VOC or a COCO set."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from moco_det.foundation.errors import InputError
from pretrain.data import annotated
from pretrain.data.paths import PathList
from pretrain.data.shard_list import is_shards

logger = logging.getLogger(__name__)

# What torchvision's ImageFolder takes. The content decides the format, not the name.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

# How many paths of a list are looked at to tell a wrong folder from a few missing images.
PROBES = 16


@dataclass(frozen=True)
class ImageList:
    """Paths, and for each the number of its class where the source has classes."""

    root: str
    paths: Sequence[str]
    labels: NDArray[np.int64] | None
    classes: list[str]

    def __len__(self) -> int:
        return len(self.paths)


# How a DATA.PATH begins -> its reader: the path to the folder of the images and their names.
SCHEMES: dict[str, Callable[[str, str], tuple[str, list[str]]]] = {
    "voc://": annotated.voc_images,
    "coco://": annotated.coco_images,
}


def list_images(path: str, *, key: str = "DATA.PATH") -> ImageList:
    """The images that `path` names, always in the same order.

    A folder (one sub-folder a class, or none; sorted by name), a text file of paths,
    `voc://DIR?split=train` or `coco://instances.json?images=DIR`. Raises InputError, which calls
    the path by `key`, where there is nothing to read.
    """
    if not path:
        raise InputError(f"{key} is empty: give a folder of images or a text file of paths")
    if is_shards(path):
        raise InputError(f"{key} {path} names shards: a folder or a list of images is needed here")
    for scheme, read in SCHEMES.items():
        if path.startswith(scheme):
            found = _unlabelled_list(path, *read(path, key))
            break
    else:
        if os.path.isdir(path):
            found = _list_folder(path, key)
        elif os.path.isfile(path):
            found = _list_text(path, key)
        else:
            raise InputError(f"{key} {path} does not exist: give a folder of images or a list")
    if not found:
        raise InputError(f"{key} {path} has no images ({', '.join(EXTENSIONS)})")
    _check_some_exist(found, path, key)
    return found


def _list_folder(root: str, key: str) -> ImageList:
    names = _walk(root, key)
    names.sort()
    paths = PathList(root, names)
    tops = [name.partition(os.sep) for name in names]
    loose = sum(not sep for _, sep, _ in tops)
    if loose:
        if loose < len(names):
            logger.warning(
                "%s %s has %d images outside its sub-folders: it is read without classes",
                key,
                root,
                loose,
            )
        return ImageList(root, paths, None, [])
    return _labelled(root, paths, [top for top, _, _ in tops])


def _walk(root: str, key: str) -> list[str]:
    """Names, relative to `root`, of all files below it with the ending of an image."""
    names: list[str] = []
    others: Counter[str] = Counter()
    folders = [""]
    seen: set[tuple[int, int]] = set()  # a link that leads back up must not be followed for ever
    with tqdm(desc="listing images", unit="image", unit_scale=True, mininterval=1, delay=5) as bar:
        while folders:
            folder = folders.pop()
            try:
                place = os.stat(os.path.join(root, folder))
                entries = list(os.scandir(os.path.join(root, folder)))
            except OSError as error:
                raise InputError(
                    f"{key} {root}: cannot list the folder {folder or root}: {error.strerror}"
                ) from error
            if (place.st_dev, place.st_ino) in seen:
                continue
            seen.add((place.st_dev, place.st_ino))
            before = len(names)
            for entry in entries:
                name = os.path.join(folder, entry.name)
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(name)
                elif not entry.name.lower().endswith(EXTENSIONS):
                    others[os.path.splitext(entry.name)[1].lower() or "no ending"] += 1
                elif entry.is_file() or entry.is_symlink():  # to wait on a pipe would be for ever
                    names.append(name)
            bar.update(len(names) - before)
    if others:
        kinds = ", ".join(f"{kind} {count}" for kind, count in others.most_common(5))
        logger.info("%s %s: files that are not taken for images: %s", key, root, kinds)
    return names


def _list_text(path: str, key: str) -> ImageList:
    names: list[str] = []
    classes: list[str] = []
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                name, *rest = line.rstrip().split("\t")
                names.append(name)
                classes += rest
                if len(rest) > 1 or len(classes) not in (0, len(names)):
                    raise InputError(
                        f"{key} {path}, line {number}: every line must be a path, or every line "
                        "path<TAB>class"
                    )
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{key} {path} is not a readable text list: {error}") from error
    paths = PathList(os.path.dirname(path), names)
    return _labelled(path, paths, classes) if classes else ImageList(path, paths, None, [])


def _labelled(root: str, paths: PathList, names: Sequence[str]) -> ImageList:
    classes = sorted(set(names))
    number = {name: i for i, name in enumerate(classes)}
    labels = np.fromiter((number[name] for name in names), dtype=np.int64, count=len(names))
    return ImageList(root, paths, labels, classes)


def _unlabelled_list(path: str, folder: str, names: Iterable[str]) -> ImageList:
    return ImageList(path, PathList(folder, names), None, [])


def _check_some_exist(images: ImageList, path: str, key: str) -> None:
    """A few missing images are counted when they are read; all missing means a wrong folder."""
    probes = np.linspace(0, len(images) - 1, min(PROBES, len(images))).astype(int)
    if not any(os.path.lexists(images.paths[i]) for i in probes):
        raise InputError(
            f"{key} {path}: {images.paths[0]} does not exist, nor does any other image that was "
            "looked for"
        )
