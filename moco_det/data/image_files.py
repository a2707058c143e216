"""Where the images of a VOC or COCO set are: the one rule of detection and of pre-training.

VOC    DIR/ImageSets/Main/<split>.txt has one image name per line, with or without its suffix. In
       the list of one class every line ends with a flag -1, 0 or 1, which is no part of the name
       unless an image is called so. The image is DIR/JPEGImages/<name> with one of IMAGE_SUFFIXES,
       in capitals or not, the first in their order where there are several.
COCO   the "file_name" of each entry of "images", in the folder that the URI names, once each.

A name may hold spaces and % (only URIs are percent-encoded), lie in a sub-folder, or be absolute.
Annotations aren't read here and an image need not exist: its reader says so where one is missing.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from moco_det.data.catalog_names import absolute, parse_uri
from moco_det.data.splits import fold_of
from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import read_text

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe")
IMAGE_SUFFIXES = (*JPEG_SUFFIXES, ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

VOC_LAYOUT = "a VOC folder holds Annotations/, ImageSets/Main/ and JPEGImages/"


def image_files(uri: str) -> tuple[str, list[str]]:
    """The folder of the images of voc://... or coco://... and their names in it.

    The order is that of the split or json file. Raises InputError naming what isn't there.
    """
    scheme, path, options = parse_uri(uri)
    if scheme == "voc":
        root = absolute(path)
        folder = root / "JPEGImages"
        names = [file for _, file in voc_files(root, options["split"])]
    else:
        folder = coco_folder(options["images"])
        found = (with_slashes(folder, name) for name in coco_files(absolute(path)))
        names = list(dict.fromkeys(found))
    return str(folder), [names[place] for place in fold_of(names, options)]


def voc_files(root: Path, split: str) -> list[tuple[str, str]]:
    """Each image's name in the split file, and its file's name in JPEGImages."""
    if not root.is_dir():
        raise InputError(f"data set folder {root} does not exist: check the path ({VOC_LAYOUT})")
    sets, folder = root / "ImageSets" / "Main", root / "JPEGImages"
    path = sets / f"{split}.txt"
    if not path.is_file():
        there = sorted(file.stem for file in sets.glob("*.txt"))
        way_out = f"choose one of {', '.join(there)}" if there else f"none is there; {VOC_LAYOUT}"
        raise InputError(f"split file {path} does not exist: {way_out}")
    if not folder.is_dir():
        raise InputError(f"image folder {folder} does not exist: {VOC_LAYOUT}")
    lines = list(filter(None, map(str.strip, read_text(path, "split file").splitlines())))
    if not lines:
        raise InputError(f"split file {path} is empty: write one image name per line into it")
    stored: dict[str, str] = {}
    for place in {os.path.dirname(line) for line in lines}:
        stored |= _images_in(folder, place)
    flagless = [match[1] for line in lines if (match := re.fullmatch(r"(.+?)\s+(-1|0|1)", line))]
    if len(set(flagless)) == len(lines) and not any(line in stored for line in lines):
        lines = flagless
    suffixed = {file: name for name, file in stored.items()}
    names = Counter(line if line in stored else suffixed.get(line, line) for line in lines)
    for name, count in names.items():
        if count > 1:
            raise InputError(f"split file {path} names {name} {count} times: name each image once")
    return [(name, stored.get(name, f"{name}.jpg")) for name in names]


def _images_in(folder: Path, place: str) -> dict[str, str]:
    """The images of one folder below `folder` by their names without suffix."""
    try:
        files = sorted(os.listdir(folder / place), reverse=True)
    except OSError:
        return {}  # the reader of its images says what is missing
    stored = {}
    for suffix in reversed(IMAGE_SUFFIXES):  # what is found last stays
        for file in files:
            if file.lower().endswith(suffix):
                stored[os.path.join(place, file[: -len(suffix)])] = os.path.join(place, file)
    return stored


def coco_folder(path: str | Path) -> Path:
    """The folder of a COCO set's images."""
    folder = absolute(path)
    if not folder.is_dir():
        raise InputError(f"image folder {folder} does not exist: check the path")
    return folder


def with_slashes(folder: str | Path, name: str) -> str:
    """An image's name as it is on disk; one written on Windows has backslashes between folders."""
    if "\\" in name and not os.path.exists(os.path.join(folder, name)):
        return name.replace("\\", "/")
    return name


def coco_files(path: Path) -> list[str]:
    """Every "file_name" of a json, without parsing its annotations: they are most of the file."""
    text = read_text(path, "annotation file")
    for match in re.finditer(r'"images"\s*:\s*(?=\[)', text):
        try:
            found, _ = json.JSONDecoder().raw_decode(text, match.end())
        except (ValueError, RecursionError):
            break  # the file is cut short, or no json that anybody wrote
        if all(map(_is_image, found)):
            return [item["file_name"] for item in found]
    raise InputError(f"annotation file {path} has no list of images in COCO's form: is it whole?")


def _is_image(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("file_name"), str)
