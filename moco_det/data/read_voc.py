"""The reader of data sets in PASCAL VOC layout.

DIR/ImageSets/Main/<split>.txt    one image name a line
DIR/Annotations/<name>.xml        boxes, 1-based and inclusive
DIR/JPEGImages/<name>.jpg         or .png, .jpeg, .bmp
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from moco_det.data.boxes import Tally, fit_box
from moco_det.data.catalog_names import voc_uri
from moco_det.data.image import image_size
from moco_det.data.records import Annotation, DetectionDataset, Record
from moco_det.foundation.errors import InputError

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")

LAYOUT = "a VOC folder holds Annotations/, ImageSets/Main/ and JPEGImages/"


def read_voc(
    directory: str | Path, split: str, classes: Sequence[str] | None = None
) -> DetectionDataset:
    """The images and boxes of one split of a VOC folder, in the order of the split's file.

    A box [xmin, ymin, xmax, ymax] of the file becomes [xmin - 1, ymin - 1, xmax, ymax]; boxes of
    zero area in the file's own numbers (xmax <= xmin) are dropped and counted, boxes outside the
    image are clipped and counted. Without `classes`: the 20 VOC classes when the split names no
    other, else the names found, alphabetically. Category ids are 1..C.
    Raises InputError naming the file and what to do about it.
    """
    root = Path(os.path.abspath(os.path.expanduser(directory)))
    if not root.is_dir():
        raise InputError(f"data set folder {directory} does not exist: check the path ({LAYOUT})")
    names = _read_split(root, split)
    images = _list_images(root)
    tally = Tally()
    parsed = [_parse(root, name, split, images, tally) for name in names]

    found = {label for _, objects in parsed for label, *_ in objects}
    if classes is None:
        ordered = VOC_CLASSES if found <= set(VOC_CLASSES) else tuple(sorted(found))
    else:
        ordered = tuple(classes)
        _refuse_unknown(root, parsed, ordered)
    index = {label: i for i, label in enumerate(ordered)}

    records, number = [], 0
    for record, objects in parsed:
        annotations = []
        for label, box, difficult in objects:
            number += 1
            area = (box[2] - box[0]) * (box[3] - box[1])
            annotations.append(
                Annotation(box, index[label], difficult=difficult, area=area, id=number)
            )
        records.append(
            Record(
                record.image_id,
                record.file_name,
                record.height,
                record.width,
                tuple(annotations),
            )
        )
    if number == 0:
        raise InputError(
            f"split {split} of {root} holds {len(records)} images and no object with a usable box: "
            "check its Annotations"
        )
    return DetectionDataset(
        name=f"{root.name}/{split}",
        uri=voc_uri(root, split),
        records=tuple(records),
        classes=ordered,
        category_ids=tuple(range(1, len(ordered) + 1)),
        ruler="voc",
        skipped=tally.messages(),
        voc_metric="2007" if root.name == "VOC2007" else "area",
    )


_Objects = list[tuple[str, tuple[float, float, float, float], bool]]


def _read_split(root: Path, split: str) -> list[str]:
    sets = root / "ImageSets" / "Main"
    path = sets / f"{split}.txt"
    if not path.is_file():
        there = sorted(p.stem for p in sets.glob("*.txt")) if sets.is_dir() else []
        cure = f"choose one of {', '.join(there)}" if there else f"none is there; {LAYOUT}"
        raise InputError(f"split file {path} does not exist: {cure}")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"split file {path} cannot be read as text ({error})") from error
    names = []
    for line in lines:
        # the per-class files of VOC (cat_train.txt) carry a flag -1, 0 or 1 behind the name
        words = line.split()
        flagged = len(words) == 2 and words[1] in ("-1", "0", "1")
        if line:
            names.append(words[0] if flagged else line)
    if not names:
        raise InputError(f"split file {path} is empty: write one image name a line into it")
    repeated = len(names) - len(set(names))
    if repeated:
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise InputError(f"split file {path} names {twice} more than once: name each image once")
    return names


def _list_images(root: Path) -> dict[str, str]:
    folder = root / "JPEGImages"
    if not folder.is_dir():
        raise InputError(f"image folder {folder} does not exist: {LAYOUT}")
    images: dict[str, str] = {}
    rank: dict[str, int] = {}
    for file in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(file)
        if suffix.lower() in IMAGE_SUFFIXES:
            order = IMAGE_SUFFIXES.index(suffix.lower())
            if order < rank.get(stem, len(IMAGE_SUFFIXES)):
                images[stem], rank[stem] = str(folder / file), order
    return images


def _parse(
    root: Path, name: str, split: str, images: dict[str, str], tally: Tally
) -> tuple[Record, _Objects]:
    path = root / "Annotations" / f"{name}.xml"
    try:
        tree = ET.parse(path).getroot()
    except FileNotFoundError as error:
        raise InputError(
            f"annotation {path} does not exist although split {split} names {name}: "
            "add it, or take the name out of the split"
        ) from error
    except (ET.ParseError, OSError, ValueError, LookupError) as error:
        raise InputError(f"annotation {path} is not readable xml ({error}): mend it") from error
    if name not in images:
        raise InputError(
            f"image {root / 'JPEGImages' / name}.jpg (or .png) does not exist although split "
            f"{split} names it: add it, or take the name out of the split"
        )
    file_name = images[name]
    size = (_integer(tree, "size/height"), _integer(tree, "size/width"))
    # some labelling tools write no size, or zeros
    height, width = size if min(size) > 0 else image_size(file_name)
    objects: _Objects = []
    for item in tree.findall("object"):
        label = (item.findtext("name") or "").strip()
        if not label:
            raise InputError(f"annotation {path} has an object without a name: mend it")
        corners = [item.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x0, y0, x1, y1 = (float(corner or "missing") for corner in corners)
        except ValueError as error:
            raise InputError(
                f"annotation {path} has an object {label!r} whose bndbox is not four numbers "
                "xmin, ymin, xmax, ymax: mend it"
            ) from error
        if x1 <= x0 or y1 <= y0:
            # compared before the 1-based shift, which would turn a point into one pixel
            tally.add("boxes of zero area dropped", path.name)
            continue
        box = fit_box((x0 - 1.0, y0 - 1.0, x1, y1), height, width, tally, path.name)
        if box is not None:
            objects.append((label, box, (item.findtext("difficult") or "0").strip() == "1"))
    return Record(name, file_name, height, width), objects


def _integer(tree: ET.Element, path: str) -> int:
    try:
        return int(float(tree.findtext(path) or 0))
    except (ValueError, OverflowError):
        return 0


def _refuse_unknown(
    root: Path, parsed: list[tuple[Record, _Objects]], classes: tuple[str, ...]
) -> None:
    for record, objects in parsed:
        for label, *_ in objects:
            if label not in classes:
                raise InputError(
                    f"class {label!r} in {root / 'Annotations' / str(record.image_id)}.xml is not "
                    f"among the training classes {', '.join(classes)}: add training images of it, "
                    "or take these objects out"
                )
