"""The reader of COCO instances files: one json and a folder of images."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pycocotools.mask

from moco_det.data.boxes import Tally, fit_box, sides_of
from moco_det.data.catalog_names import absolute, coco_uri
from moco_det.data.image_files import coco_folder, with_slashes
from moco_det.data.masks import bounded, compressed, too_long, whole_masks
from moco_det.data.records import (
    Annotation,
    DetectionDataset,
    Record,
    Segmentation,
    listed,
    unknown_class,
)
from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import read_json

ID = (int, str)
LARGEST_AREA = 1e10  # that COCO's scoring knows, in square pixels
# list of a json -> what one entry is called, the fields that every entry has, and their types
FIELDS: dict[str, tuple[str, dict[str, Any]]] = {
    "images": ("image", {"id": ID, "file_name": str}),
    "annotations": ("annotation", {"image_id": ID, "category_id": int}),
    "categories": ("category", {"id": int, "name": str}),
}


def read_coco(
    json_file: str | Path, image_dir: str | Path, classes: Sequence[str] | None = None
) -> DetectionDataset:
    """The images and objects of a COCO json, images in the order of their ids.

    Classes come in the order of their category ids, or in the order of `classes`; a class the json
    does not know is then given an unused id. "ignore": 1 reads as difficult. Polygons of fewer than
    three points are dropped, and an object that has none left serves its box alone; a box of no
    area and an annotation of an image that is not listed are dropped, what leaves its image is
    clipped, an area that is no number is measured; all are counted. Raises InputError naming the
    file and what to do about it.
    """
    path, folder = absolute(json_file), coco_folder(image_dir)
    content = _load(path)
    names = {c["id"]: c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])}
    classes = tuple(names.values() if classes is None else classes)
    ids, unused = {name: own for own, name in names.items()}, itertools.count(max(names) + 1)
    category_ids = tuple(ids[name] if name in ids else next(unused) for name in classes)
    index = {own: place for place, own in enumerate(category_ids)}
    tally = Tally()
    images = _images(path, folder, content["images"], tally)

    texts = set(map(str, images))
    objects: dict[int | str, list[Annotation]] = {image_id: [] for image_id in images}
    for item in content["annotations"]:
        number, image_id, category = item.get("id", 0), item["image_id"], item["category_id"]
        if image_id not in objects:
            what = "annotations of images that are not listed dropped"
            if str(image_id) in texts:
                what = "annotations dropped, for image_id and id of their image are text and number"
            tally.add(what, f"id {number}, image_id {image_id!r}")
            continue
        if category not in names:
            raise InputError(
                f"{path}: annotation {number} has category_id {category}, which is not among "
                f"its categories (ids {listed(names)}): add the category or drop it"
            )
        if category not in index:
            what = f"class {names[category]!r} of annotation {number} in {path}"
            raise unknown_class(what, classes)
        _, height, width = images[image_id]
        try:
            annotation = _annotation(item, number, index[category], height, width, tally)
        except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
            raise InputError(
                f"{path}: annotation id {number} has a bbox, segmentation, area or flag that is "
                f"not COCO's ({error}): fix it"
            ) from error
        if annotation is not None:
            objects[image_id].append(annotation)

    tally.check_pixels(str(path))
    if not any(objects.values()):
        reasons = "; ".join(tally.messages()) or "its list of annotations is empty"
        raise InputError(f"{path} holds {len(images)} images and no usable object: {reasons}")
    masks = [a.segmentation for of in objects.values() for a in of if not a.iscrowd]
    given = sum(mask is not None for mask in masks)
    has_masks = any(masks) and given == len(masks)
    some = f"only {given} of {len(masks)} objects have a mask: the set serves boxes only"
    skipped = (*tally.messages(), *([some] if any(masks) and not has_masks else []))
    return DetectionDataset(
        name=path.stem,
        uri=coco_uri(path, folder),
        records=tuple(
            Record(image_id, *image, tuple(objects[image_id])) for image_id, image in images.items()
        ),
        classes=classes,
        category_ids=category_ids,
        has_masks=has_masks,
        skipped=skipped,
    )


def _load(path: Path) -> dict[str, Any]:
    """The content, in which every entry has its FIELDS, and ids and class names are unique."""
    content = read_json(path, "annotation file")
    for key, (one, fields) in FIELDS.items():
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError(
                f"annotation file {path} has no list {key!r} of objects {{}}: it is not a COCO "
                "instances json"
            )
        if not rows and key != "annotations":
            raise InputError(f"annotation file {path} lists no {key}: the data set is empty")
        for row in rows:
            for field, kind in ({"id": int, **fields} if "id" in row else fields).items():
                value = row.get(field)
                if (
                    not isinstance(value, kind)
                    or isinstance(value, bool)
                    or not _sane(field, value)
                ):
                    raise InputError(
                        f"{path}: entry {json.dumps(row)[:80]}... has no usable {field!r}: fix "
                        "the json"
                    )
        _refuse_twice(path, f"{one} id", (row["id"] for row in rows if "id" in row))
    _refuse_twice(path, "category", (row["name"] for row in content["categories"]))
    return content


def _sane(field: str, value: int | str) -> bool:
    """Whether a number fits into int64, and text can be written as what it is."""
    if isinstance(value, int):
        return abs(value) < 2**63
    try:
        text = os.fsencode(value) if field == "file_name" else value.encode()
    except UnicodeEncodeError:  # half of a pair of \\uXXXX in json
        return False
    return len(text) <= (4096 if field == "file_name" else 255)


def _refuse_twice(path: Path, what: str, values: Iterable[int | str]) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise InputError(
                f"{path}: {what} {value!r} is listed twice: it must be unique; number them anew "
                "where files were joined"
            )


def _images(
    path: Path, folder: Path, images: list[dict[str, Any]], tally: Tally
) -> dict[int | str, tuple[str, int, int]]:
    """File, height and width by id."""
    images = sorted(images, key=lambda item: (isinstance(item["id"], str), item["id"]))
    files = [os.path.join(folder, with_slashes(folder, item["file_name"])) for item in images]
    missing = [file for file in files if not os.path.isfile(file)]
    if missing:
        name, way_out = os.path.basename(missing[0]), "is this the right image folder?"
        if os.path.isfile(folder / name):
            way_out = f'{name} lies in {folder} itself: take the folders out of "file_name"'
        raise InputError(
            f"image {missing[0]} does not exist ({len(missing)} of the {len(images)} images of "
            f"{path} are missing): {way_out}"
        )
    first: dict[str, Any] = {}
    for item, file in zip(images, files, strict=True):
        before = first.setdefault(os.path.normpath(file), item["id"])
        if before != item["id"]:
            where = f"{item['file_name']}, ids {before!r} and {item['id']!r}"
            tally.add("images under a second id, each id with objects of its own", where)
    table = {}
    for item, file in zip(images, files, strict=True):
        table[item["id"]] = (file, *sides_of(item.get("height"), item.get("width"), file))
    return table


def _annotation(
    item: dict[str, Any], number: int, category: int, height: int, width: int, tally: Tally
) -> Annotation | None:
    where, bbox = f"annotation id {number}", item.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise ValueError(f"bbox {bbox!r} is not four numbers x, y, width, height")
    x, y, w, h = map(float, bbox)
    box = fit_box((x, y, x + w, y + h), height, width, tally, where)
    if box is None:
        return None
    segmentation, cut = _segmentation(item.get("segmentation"), height, width, box)
    if cut:
        tally.add("masks with a polygon far outside their image clipped to it", where)
    if segmentation == []:
        tally.add("objects without a polygon of three points serve their box alone", where)
    area = item.get("area")
    if area is not None and not 0 <= float(area) <= LARGEST_AREA:
        tally.add(f"areas outside 0..{LARGEST_AREA:g} measured anew by mask or box", where)
        area = None
    if area is None:
        area = (box[2] - box[0]) * (box[3] - box[1])
        if segmentation:
            area = pycocotools.mask.area(compressed(segmentation, height, width))
    iscrowd, difficult = _flag(item, "iscrowd"), _flag(item, "ignore")
    return Annotation(box, category, iscrowd, difficult, float(area), segmentation, number)


def _flag(item: dict[str, Any], key: str) -> bool:
    value = item.get(key) or 0
    if value not in (0, 1):
        raise ValueError(f"{key} {value!r} is neither 0 nor 1")
    return bool(value)


def _segmentation(
    raw: Any, height: int, width: int, box: Sequence[float]
) -> tuple[Segmentation, bool]:
    """The mask, and whether it had to be cut."""
    if not raw:
        return None, False
    if isinstance(raw, dict):
        if [int(side) for side in raw["size"]] != [height, width]:
            raise ValueError(f"RLE of size {raw['size']} in an image of {[height, width]}")
        counts = raw["counts"]
        if isinstance(counts, list):
            if any(c < 0 for c in counts) or sum(counts) != height * width:
                raise ValueError("RLE counts that do not add up to the image")
            counts = pycocotools.mask.frPyObjects(raw, height, width)["counts"].decode("ascii")
        # pycocotools reads past the end of a damaged one: pixels that nobody has written
        if not isinstance(counts, str) or not whole_masks([counts], [height * width])[0]:
            raise ValueError("RLE counts that are no mask of the image")
        return {"size": [height, width], "counts": counts}, False
    polygons = [[float(value) for value in polygon] for polygon in raw]
    if not all(math.isfinite(value) for polygon in polygons for value in polygon):
        raise ValueError("a polygon with a coordinate that is no number")
    outlines = [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]
    inside = [bounded(outline, height, width) for outline in outlines]
    found = [outline for outline in inside if outline]
    if any(too_long(outline, height, width, box) for outline in found):
        raise ValueError("a polygon whose outline is too long for its image or its bbox")
    return found, inside != outlines
