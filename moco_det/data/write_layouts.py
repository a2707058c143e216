"""Writing made images and their objects in COCO's and in VOC's layout at once.

coco/annotations/<split>.json    coco/<split>/000001.jpg ...
voc/{Annotations,JPEGImages}/<split>_000001.{xml,jpg} ...    voc/ImageSets/Main/<split>.txt
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from moco_det.data.catalog_names import coco_uri, voc_uri
from moco_det.data.image import write_jpeg
from moco_det.data.masks import mask_polygons


class DrawnObject(NamedTuple):
    """An object of a made image; `box` is (x0, y0, x1, y1) in pixels, x1 and y1 exclusive."""

    label: str
    box: tuple[int, int, int, int]
    truncated: bool = False
    mask: npt.NDArray[np.bool_] | None = None


# RGB pixels and the objects on them
DrawnImage = tuple[npt.NDArray[np.uint8], Sequence[DrawnObject]]


def json_and_images(root: Path, split: str) -> tuple[Path, Path]:
    """The json of a split and the folder of its images."""
    return root / "coco" / "annotations" / f"{split}.json", root / "coco" / split


def layout_names(root: Path) -> dict[str, str]:
    """The data set names of `train` and `test` in COCO layout, and of both in VOC layout."""
    names = {split: coco_uri(*json_and_images(root, split)) for split in ("train", "test")}
    return names | {f"voc_{split}": voc_uri(root / "voc", split) for split in ("train", "test")}


def holds_recipe(path: Path, recipe: dict[str, Any]) -> bool:
    """Whether this json file, which a finished folder has, says that it was made by `recipe`."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")) == recipe)
    except (OSError, ValueError):
        return False


def write_layouts(
    folder: Path, split: str, drawn: Iterable[DrawnImage], classes: Sequence[str], description: str
) -> None:
    """Write the images of a split, its json, and the same in VOC layout.

    A COCO object has a polygon where it has a mask; its area is that of the mask or the box.
    """
    json_file, images = json_and_images(folder, split)
    xmls, jpegs = folder / "voc" / "Annotations", folder / "voc" / "JPEGImages"
    sets = folder / "voc" / "ImageSets" / "Main"
    for made in (images, json_file.parent, xmls, jpegs, sets):
        made.mkdir(parents=True, exist_ok=True)
    names = []
    coco: dict[str, Any] = {
        "info": {"description": description},
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": n} for i, n in enumerate(classes, start=1)],
    }
    for number, (pixels, objects) in enumerate(drawn, start=1):
        file, name = images / f"{number:06d}.jpg", f"{split}_{number:06d}"
        write_jpeg(file, pixels[:, :, ::-1])
        shutil.copyfile(file, jpegs / f"{name}.jpg")
        height, width = pixels.shape[:2]
        row = {"id": number, "file_name": file.name, "height": height, "width": width}
        coco["images"].append(row)
        voc: dict[str, Any] = {
            "filename": f"{name}.jpg",
            "size": {"width": width, "height": height, "depth": 3},
            "segmented": 0,
            "object": [],
        }
        for label, (x0, y0, x1, y1), truncated, mask in objects:
            area = (x1 - x0) * (y1 - y0) if mask is None else int(mask.sum())
            annotation = {
                "id": len(coco["annotations"]) + 1,
                "image_id": number,
                "category_id": classes.index(label) + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": area,
                "iscrowd": 0,
            }
            if mask is not None:
                annotation["segmentation"] = mask_polygons(mask)
            coco["annotations"].append(annotation)
            box = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}
            flags = {"pose": "Unspecified", "truncated": int(truncated), "difficult": 0}
            voc["object"].append({"name": label, **flags, "bndbox": box})
        xml = _xml("annotation", voc)
        ElementTree.indent(xml)
        text = ElementTree.tostring(xml, encoding="unicode")
        (xmls / f"{name}.xml").write_text(f"{text}\n", encoding="utf-8")
        names.append(f"{name}\n")
    json_file.write_text(json.dumps(coco) + "\n", encoding="utf-8")
    (sets / f"{split}.txt").write_text("".join(names), encoding="utf-8")


def _xml(tag: str, content: Any) -> ElementTree.Element:
    """An element per key of a dict, several where its value is a list."""
    element = ElementTree.Element(tag)
    if not isinstance(content, dict):
        element.text = str(content)
        return element
    for key, value in content.items():
        element.extend(_xml(key, one) for one in (value if isinstance(value, list) else [value]))
    return element
