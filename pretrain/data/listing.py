"""Which images there are: a folder, a text list, a VOC or a COCO set."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from moco_det.data.image_files import IMAGE_SUFFIXES, image_files, with_slashes
from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import read_text

logger = logging.getLogger(__name__)

SHARD_ENDINGS = (".tar", ".tar.gz", ".tgz")
# How many paths of a list are looked at to tell a wrong folder from a few missing images.
PROBES = 16


class PathList(Sequence[str]):
    """Paths below one folder, kept as one string of bytes and the places where they end.

    A list of strings costs three times as much, and every worker would come to own a copy of it:
    to look at a string changes its reference count, and so its memory page. Names that are
    absolute stand for themselves, as in os.path.join.
    """

    def __init__(self, root: str, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        small = len(ends) == 0 or ends[-1] < 2**32
        self.root = root
        self.text = b"".join(encoded)
        self.ends = ends.astype(np.uint32) if small else ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:  # a path, or a list of them for a slice
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]  # negative numbers and IndexError as in a list
        begin = int(self.ends[i - 1]) if i else 0
        return os.path.join(self.root, os.fsdecode(self.text[begin : int(self.ends[i])]))


@dataclass(frozen=True)
class ImageList:
    """Paths, and for each the number of its class where the source has classes."""

    root: str
    paths: Sequence[str]
    labels: NDArray[np.int64] | None
    classes: list[str]

    def __len__(self) -> int:
        return len(self.paths)


def is_shards(path: str) -> bool:
    """Whether a DATA.PATH names tar files rather than images."""
    return path.endswith(SHARD_ENDINGS) or path.startswith("pipe:")


def list_images(path: str, *, key: str = "DATA.PATH") -> ImageList:
    """The images that `path` names, always in the same order.

    A folder (one sub-folder per class, or none; sorted by name), a text file of paths,
    `voc://DIR?split=train` or `coco://instances.json?images=DIR`. Raises InputError, which calls
    the path by `key`, where there is nothing to read.
    """
    if not path:
        raise InputError(f"{key} is empty: give a folder of images or a text file of paths")
    if is_shards(path):
        raise InputError(f"{key} {path} names shards: a folder or a list of images is needed here")
    if path.startswith(("voc://", "coco://")):
        try:
            paths = PathList(*image_files(path))
        except InputError as error:
            raise InputError(f"{key} {path}: {error}") from error
        found = ImageList(path, paths, None, [])
    elif os.path.isdir(path):
        found = _list_folder(path, key)
    elif os.path.isfile(path):
        found = _list_text(path, key)
    else:
        raise InputError(f"{key} {path} does not exist: give a folder of images or a list")
    if not found:
        raise InputError(f"{key} {path} has no images ({', '.join(IMAGE_SUFFIXES)})")
    # A few missing images are counted when they are read; all missing means a wrong folder.
    probes = np.linspace(0, len(found) - 1, min(PROBES, len(found))).astype(int)
    if not any(os.path.lexists(found.paths[i]) for i in probes):
        raise InputError(
            f"{key} {path}: {found.paths[0]} does not exist, nor does any other image that was "
            "looked for"
        )
    return found


def _list_folder(root: str, key: str) -> ImageList:
    names = sorted(_walk(root, key))
    paths = PathList(root, names)
    tops = [name.partition(os.sep) for name in names]
    loose = sum(not sep for _, sep, _ in tops)
    if not loose:
        return _labelled(root, paths, [top for top, _, _ in tops])
    if loose < len(names):
        logger.warning(
            "%s %s has %d images outside its sub-folders: it is read without classes",
            *(key, root, loose),
        )
    return ImageList(root, paths, None, [])


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
            for entry in entries:
                name = os.path.join(folder, entry.name)
                if entry.name.startswith("."):
                    continue
                if os.path.isdir(entry) if entry.is_symlink() else entry.is_dir():
                    folders.append(name)
                elif not entry.name.lower().endswith(IMAGE_SUFFIXES):
                    others[os.path.splitext(entry.name)[1].lower() or "no ending"] += 1
                elif entry.is_symlink() or entry.is_file():  # to wait on a pipe would be for ever
                    names.append(name)
            bar.update(len(names) - bar.n)
    if others:
        kinds = ", ".join(f"{kind} {count}" for kind, count in others.most_common(5))
        logger.info("%s %s: files that are not taken for images: %s", key, root, kinds)
    return names


def _list_text(path: str, key: str) -> ImageList:
    root = os.path.dirname(path)
    names: list[str] = []
    classes: list[str] = []
    for number, line in enumerate(read_text(Path(path), key).split("\n"), 1):
        if not line.strip():
            continue
        name, *rest = line.rstrip().split("\t")
        names.append(with_slashes(root, name))
        classes += rest
        if len(rest) > 1 or len(classes) not in (0, len(names)):
            raise InputError(
                f"{key} {path}, line {number}: every line must be a path, or every line "
                "path<TAB>class"
            )
    paths = PathList(root, names)
    return _labelled(path, paths, classes) if classes else ImageList(path, paths, None, [])


def _labelled(root: str, paths: PathList, names: Sequence[str]) -> ImageList:
    classes = sorted(set(names))
    number = {name: i for i, name in enumerate(classes)}
    labels = np.fromiter((number[name] for name in names), dtype=np.int64, count=len(names))
    return ImageList(root, paths, labels, classes)
