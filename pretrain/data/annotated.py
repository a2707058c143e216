"""The images of detection sets, without their boxes: PASCAL VOC and COCO layouts."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from moco_det.foundation.errors import InputError


def voc_images(path: str, key: str) -> tuple[str, list[str]]:
    """The folder and the file names of `voc://DIR?split=train`: ImageSets/Main/train.txt."""
    root, split = _split(path, key, "voc://DIR?split=train")
    listing = os.path.join(root, "ImageSets", "Main", f"{split}.txt")
    folder = os.path.join(root, "JPEGImages")
    try:
        with open(listing, encoding="utf-8") as file:
            rows = [line.split() for line in file if line.strip()]
        stored = {os.path.splitext(name)[0]: name for name in sorted(os.listdir(folder))}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{key} {path}: cannot read a VOC set there: {error}") from error
    for row in rows:
        if len(row) > 1:
            raise InputError(
                f"{key} {path}: {listing} has more than a name in a line, as the lists of one "
                "class do; name a split such as train or trainval"
            )
    # A name without its image is kept: reading it fails, and that is counted and named.
    return folder, [stored.get(name, f"{name}.jpg") for (name,) in rows]


def coco_images(path: str, key: str) -> tuple[str, list[str]]:
    """The folder and the file names of `coco://instances.json?images=DIR`."""
    place, folder = _split(path, key, "coco://instances.json?images=DIR")
    if not os.path.isdir(folder):
        raise InputError(f"{key} {path}: there is no folder of images {folder}")
    try:
        with open(place, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{key} {path}: cannot read {place}: {error}") from error
    records = _image_records(text)
    if records is None:
        raise InputError(f"{key} {path}: {place} has no list of images in COCO's form")
    return folder, [record["file_name"] for record in records]


def _image_records(text: str) -> list[dict[str, Any]] | None:
    """The list under "images", without parsing the annotations: those are most of the file."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r'"images"\s*:\s*(?=\[)', text):
        try:
            found, _ = decoder.raw_decode(text, match.end())
        except json.JSONDecodeError:
            return None  # the file is cut short
        if all(isinstance(r, dict) and isinstance(r.get("file_name"), str) for r in found):
            return found
    return None


def _split(path: str, key: str, form: str) -> tuple[str, str]:
    """The two values of scheme://FIRST?option=SECOND."""
    scheme, _, rest = path.partition("://")
    first, _, option = rest.rpartition("?")
    name, _, second = option.partition("=")
    wanted = form.rpartition("?")[2].partition("=")[0]
    if not first or name != wanted or not second:
        raise InputError(f"{key} {path}: write it as {form}")
    return first, second
