"""The reader of data sets in PASCAL VOC layout.

DIR/ImageSets/Main/<split>.txt    one image name per line
DIR/Annotations/<name>.xml        boxes, 1-based and inclusive; or beside the image
DIR/JPEGImages/<name>.jpg         or .png and so on: moco_det.data.image_files
"""

from __future__ import annotations

import itertools
import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from moco_det.data.boxes import Tally, fit_box, sides_of
from moco_det.data.catalog_names import absolute, voc_uri
from moco_det.data.image_files import voc_files
from moco_det.data.records import Annotation, DetectionDataset, Record, unknown_class
from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import MOST_LABELS, read_bytes

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


Parsed = tuple[Record, list[tuple[str, Annotation]]]


def read_voc(
    directory: str | Path, split: str, classes: Sequence[str] | None = None
) -> DetectionDataset:
    """The images and boxes of one split of a VOC folder, in the order of the split's file.

    Each box [xmin, ymin, xmax, ymax] of an object becomes an object [xmin - 1, ymin - 1, xmax,
    ymax]; boxes without area in the file's own numbers (xmax <= xmin) are dropped and counted,
    boxes outside the image are clipped and counted. Without `classes`: the 20 VOC classes when the
    split names no other, else the names found, alphabetically. Category ids are 1..C.
    Raises InputError naming the file and what to do about it.
    """
    root, tally, parsed = absolute(directory), Tally(), {}
    for name, file in voc_files(root, split):
        parsed[name] = _parse(root, split, name, file, tally)

    tally.check_pixels(str(root / "Annotations"))
    first: dict[str, str] = {}  # class -> the first image that has it
    for name, (_, objects) in parsed.items():
        for label, _ in objects:
            first.setdefault(label, name)
    if classes is None:
        classes = VOC_CLASSES if first.keys() <= set(VOC_CLASSES) else sorted(first)
    index = {label: i for i, label in enumerate(classes)}
    for label, name in first.items():
        if label not in index:
            raise unknown_class(f"class {label!r} in {root / 'Annotations' / name}.xml", classes)
    number = itertools.count(1)
    records = [
        replace(
            record,
            annotations=tuple(
                replace(found, category=index[label], id=next(number)) for label, found in objects
            ),
        )
        for record, objects in parsed.values()
    ]
    if not first:
        raise InputError(
            f"split {split} of {root} holds {len(records)} images and no object with a usable box: "
            + ("; ".join(tally.messages()) or "its annotations hold no <object>")
        )
    return DetectionDataset(
        name=f"{root.name}/{split}",
        uri=voc_uri(root, split),
        records=tuple(records),
        classes=tuple(classes),
        category_ids=tuple(range(1, len(classes) + 1)),
        layout="voc",
        skipped=tally.messages(),
        voc_metric="2007" if root.name == "VOC2007" else "area",
    )


def _parse(root: Path, split: str, name: str, file: str, tally: Tally) -> Parsed:
    """The image, and its objects with their classes by name, not numbered yet."""
    path, image = root / "Annotations" / f"{name}.xml", str(root / "JPEGImages" / file)
    beside = root / "JPEGImages" / f"{name}.xml"
    if not path.exists() and beside.exists():
        path = beside
    if not os.path.lexists(path):
        raise InputError(
            f"annotation {path} does not exist although split {split} names {name}: "
            "add it, or take the name out of the split"
        )
    try:
        tree = ET.fromstring(read_bytes(path, "annotation", MOST_LABELS))
    except (ET.ParseError, ValueError, LookupError) as error:
        raise InputError(f"annotation {path} is not readable xml ({error}): fix it") from error
    if not os.path.isfile(image):
        raise InputError(
            f"image {image} does not exist, nor one of another ending, although split {split} "
            "names it: add it, or take the name out of the split"
        )
    try:
        height, width = (int(float(tree.findtext(f"size/{s}") or 0)) for s in ("height", "width"))
    except (ValueError, OverflowError):
        height = width = 0  # some labelling tools write no size, or zeros
    height, width = sides_of(height, width, image)
    objects = []
    for item in tree.findall("object"):
        label = (item.findtext("name") or "").strip()
        if not label:
            raise InputError(f"annotation {path} has an object without a name: fix it")
        difficult = (item.findtext("difficult") or "0").strip() == "1"
        for given in item.findall("bndbox") or [item]:
            sides = [given.findtext(side) for side in ("xmin", "ymin", "xmax", "ymax")]
            try:
                corners = [float(side or "missing") for side in sides]
            except ValueError as error:
                raise InputError(
                    f"annotation {path} has an object {label!r} whose bndbox is not four numbers "
                    "xmin, ymin, xmax, ymax: fix it"
                ) from error
            box = fit_box(corners, height, width, tally, path.name, first=1)
            if box is not None:
                area = (box[2] - box[0]) * (box[3] - box[1])
                objects.append((label, Annotation(box, -1, difficult=difficult, area=area)))
    return Record(name, image, height, width), objects
