"""The reader of COCO instances files: one json and a folder of images."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pycocotools.mask

from moco_det.data.boxes import Tally, fit_box
from moco_det.data.catalog_names import coco_uri
from moco_det.data.image import image_size
from moco_det.data.records import Annotation, DetectionDataset, Record, Segmentation
from moco_det.data.rle import whole_masks
from moco_det.foundation.errors import InputError


def read_coco(
    json_file: str | Path, image_dir: str | Path, classes: Sequence[str] | None = None
) -> DetectionDataset:
    """The images and objects of a COCO json, images in the order of their ids.

    Classes come in the order of their category ids, or in the order of `classes`; a class the json
    does not know is then given an unused id. "ignore": 1 reads as difficult. Polygons of fewer than
    three points are dropped; an object that has none left, a box of zero area and an annotation of
    an image that is not listed are dropped, a box outside its image is clipped; all are counted.
    Raises InputError naming the file and what to do about it.
    """
    path = Path(os.path.abspath(os.path.expanduser(json_file)))
    folder = Path(os.path.abspath(os.path.expanduser(image_dir)))
    content = _load(path)
    if not folder.is_dir():
        raise InputError(f"image folder {folder} does not exist: check the path")
    tally = Tally()
    ordered, category_ids = _categories(path, content["categories"], classes)
    images = _images(path, folder, content["images"])

    index = dict(zip(category_ids, range(len(ordered)), strict=True))
    names = {_field(path, c, "id", int): c.get("name") for c in content["categories"]}
    objects: dict[int | str, list[Annotation]] = {image_id: [] for image_id in images}
    seen: set[int] = set()
    for item in content["annotations"]:
        number = _field(path, item, "id", int) if "id" in item else 0
        if "id" in item and number in seen:
            raise InputError(
                f"{path}: annotation id {number} is listed twice: ids must be unique; number the "
                "annotations anew where files were joined"
            )
        seen.add(number)
        image_id = _field(path, item, "image_id", (int, str))
        if image_id not in objects:
            tally.add("annotations of images that are not listed dropped", f"id {number}")
            continue
        category = _field(path, item, "category_id", int)
        if category not in names:
            raise InputError(
                f"{path}: annotation {number} has category_id {category}, which is not among "
                f"its categories (ids {_some(sorted(names))}): add the category or drop it"
            )
        if category not in index:
            raise InputError(
                f"class {names[category]!r} of annotation {number} in {path} is not among the "
                f"training classes {_some(ordered)}: add training images of it, or take these "
                "objects out"
            )
        annotation = _annotation(path, item, number, index[category], images[image_id], tally)
        if annotation is not None:
            objects[image_id].append(annotation)

    count = sum(len(of_image) for of_image in objects.values())
    if count == 0:
        raise InputError(f"{path} holds {len(images)} images and no usable object: check it")
    masks = [a.segmentation is not None for of in objects.values() for a in of if not a.iscrowd]
    skipped = tally.messages()
    if any(masks) and not all(masks):
        some = f"only {sum(masks)} of {len(masks)} objects have a mask: the set serves boxes only"
        skipped = (*skipped, some)
    return DetectionDataset(
        name=path.stem,
        uri=coco_uri(path, folder),
        records=tuple(
            Record(image_id, file_name, height, width, tuple(objects[image_id]))
            for image_id, (file_name, height, width) in images.items()
        ),
        classes=ordered,
        category_ids=category_ids,
        has_masks=bool(masks) and all(masks),
        ruler="coco",
        skipped=skipped,
    )


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"annotation file {path} does not exist: check the path")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"annotation file {path} is not json ({error}): is it whole?") from error
    except OSError as error:
        raise InputError(f"annotation file {path} cannot be read ({error.strerror})") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(
                f"annotation file {path} has no list {key!r}: it is not a COCO instances json"
            )
        if not all(isinstance(item, dict) for item in content[key]):
            raise InputError(f"annotation file {path}: an entry of {key!r} is not an object {{}}")
    for key in ("images", "categories"):
        if not content[key]:
            raise InputError(f"annotation file {path} lists no {key}: the data set is empty")
    return content


def _field(path: Path, item: dict[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    value = item.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        shown = json.dumps(item)[:80]
        raise InputError(f"{path}: entry {shown}... has no usable {key!r}: mend the json")
    return value


def _categories(
    path: Path, categories: list[dict[str, Any]], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    ids: dict[str, int] = {}
    for category in sorted(categories, key=lambda item: _field(path, item, "id", int)):
        name = _field(path, category, "name", str)
        if name in ids or category["id"] in ids.values():
            raise InputError(
                f"{path}: category {name!r} (id {category['id']}) is listed twice: "
                "names and ids must be unique"
            )
        ids[name] = category["id"]
    if classes is None:
        return tuple(ids), tuple(ids.values())
    unused = max(ids.values())
    chosen = []
    for name in classes:
        if name not in ids:
            unused += 1
        chosen.append(ids.get(name, unused))
    return tuple(classes), tuple(chosen)


def _images(
    path: Path, folder: Path, images: list[dict[str, Any]]
) -> dict[int | str, tuple[str, int, int]]:
    table: dict[int | str, tuple[str, int, int]] = {}
    missing = []
    by_id = sorted(images, key=lambda item: _sortable(_field(path, item, "id", (int, str))))
    for item in by_id:
        if item["id"] in table:
            raise InputError(f"{path}: image id {item['id']} is listed twice: ids must be unique")
        file_name = os.path.join(folder, _field(path, item, "file_name", str))
        if not os.path.isfile(file_name):
            missing.append(file_name)
            continue
        height, width = item.get("height"), item.get("width")
        if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
            height, width = image_size(file_name)
        table[item["id"]] = (file_name, height, width)
    if missing:
        raise InputError(
            f"image {missing[0]} does not exist ({len(missing)} of the {len(images)} images of "
            f"{path} are missing): is this the right image folder?"
        )
    return table


def _sortable(image_id: int | str) -> tuple[int, int, str]:
    return (0, image_id, "") if isinstance(image_id, int) else (1, 0, image_id)


def _annotation(
    path: Path,
    item: dict[str, Any],
    number: int,
    category: int,
    image: tuple[str, int, int],
    tally: Tally,
) -> Annotation | None:
    _, height, width = image
    where = f"annotation id {number}"
    bbox = item.get("bbox")
    try:
        x, y, w, h = (float(value) for value in bbox)  # type: ignore[union-attr]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path}: {where} has bbox {bbox!r}, which is not four numbers x, y, width, height"
        ) from error
    box = fit_box((x, y, x + w, y + h), height, width, tally, where)
    if box is None:
        return None
    try:
        segmentation = _segmentation(item.get("segmentation"), height, width)
        if segmentation == []:
            tally.add("objects without a polygon of three points dropped", where)
            return None
        area = item.get("area")
        if area is None:
            area = _area(segmentation, box, height, width)
        area = float(area)
        flags = (_flag(item, "iscrowd"), _flag(item, "ignore"))
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise InputError(
            f"{path}: {where} has a segmentation, area or flag that is not COCO's "
            f"({error}): mend it"
        ) from error
    return Annotation(
        box,
        category,
        iscrowd=flags[0],
        difficult=flags[1],
        area=area,
        segmentation=segmentation,
        id=number,
    )


def _flag(item: dict[str, Any], key: str) -> bool:
    value = item.get(key) or 0
    if value not in (0, 1):
        raise ValueError(f"{key} {value!r} is neither 0 nor 1")
    return bool(value)


def _segmentation(raw: Any, height: int, width: int) -> Segmentation:
    if not raw:
        return None
    if isinstance(raw, dict):
        if [int(side) for side in raw["size"]] != [height, width]:
            raise ValueError(f"RLE of size {raw['size']} in an image of {[height, width]}")
        counts = raw["counts"]
        if isinstance(counts, list):
            if any(c < 0 for c in counts) or sum(counts) != height * width:
                raise ValueError("RLE counts that do not add up to the image")
            counts = pycocotools.mask.frPyObjects(raw, height, width)["counts"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        # pycocotools reads past the end of a damaged one: pixels that nobody has written
        if not isinstance(text, str) or not whole_masks([text], [height * width])[0]:
            raise ValueError("RLE counts that are no mask of the image")
        return {"size": [height, width], "counts": text}
    polygons = [[float(value) for value in polygon] for polygon in raw]
    if not all(math.isfinite(value) for polygon in polygons for value in polygon):
        raise ValueError("a polygon with a coordinate that is no number")
    return [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]


def _area(
    segmentation: Segmentation, box: tuple[float, float, float, float], height: int, width: int
) -> float:
    if segmentation is None:
        return (box[2] - box[0]) * (box[3] - box[1])
    rle = segmentation
    if isinstance(segmentation, list):
        rle = pycocotools.mask.merge(pycocotools.mask.frPyObjects(segmentation, height, width))
    return float(pycocotools.mask.area(rle))


def _some(names: Sequence[Any], limit: int = 12) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(str(name) for name in names[:limit]) + more
