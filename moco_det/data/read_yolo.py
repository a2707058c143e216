"""YOLO labels to COCO content: data.yaml names splits and classes, one .txt of objects per image.

A line is `class cx cy width height`, or `class x y x y x y ...` for a polygon, in shares of the
image. Labels lie in labels/ where the images lie in images/, else beside them.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from moco_det.data.catalog_names import absolute
from moco_det.data.folder_files import Folder, FoundData, coco_uris, head, json_file, write_coco
from moco_det.data.image import image_size
from moco_det.data.image_files import IMAGE_SUFFIXES
from moco_det.data.splits import split_of
from moco_det.foundation.atomic import write_text
from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import read_text
from moco_det.foundation.strict_yaml import MOST_YAML, load_mapping

MOST_CLASSES = 20_000
CLASS_FILES = ("classes.txt", "obj.names", "labels.txt")


def read_data_yaml(file: Path) -> dict[str, Any] | None:
    """The content of a data.yaml by whatever name, None of any other yaml."""
    try:
        content = load_mapping(read_text(file, "data description", MOST_YAML), str(file))
    except InputError:
        if file.stem not in ("data", "dataset"):
            return None
        raise
    known = {"names", "nc"} & content.keys() and {"train", "val", "test"} & content.keys()
    return content if known else None


def class_names(content: Mapping[str, Any], file: Path) -> dict[int, str]:
    """Class names by number."""
    names = content.get("names", content.get("nc"))
    if isinstance(names, int) and 0 < names <= MOST_CLASSES and names is not True:
        names = list(range(names))
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(isinstance(n, int) for n in names):
        raise InputError(f"{file}: 'names' is {names!r}: write a list of class names")
    found = {number: str(name) for number, name in names.items()}
    if len(found) > MOST_CLASSES or len(set(found.values())) < len(found):
        raise InputError(
            f"{file}: 'names' has a name twice, or more than {MOST_CLASSES}: correct it"
        )
    return found


def split_images(content: Mapping[str, Any], file: Path, split: str) -> list[Path]:
    """The images of train, val or test, none where the yaml names none that are there.

    A folder of another machine, or one counted from elsewhere ("../train/images"), is found by the
    longest end of its path that is there.
    """
    entries = content.get(split) or []
    entries = [entries] if isinstance(entries, str) else entries
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise InputError(f"{file}: {split!r} is {entries!r}: write a folder or a list of folders")
    root = file.parent
    bases = [root / str(content["path"]), root] if content.get("path") else [root]
    images: list[Path] = []
    for entry in entries:
        parts = Path(entry).parts
        tails = [Path(*parts[i:]) for i in range(len(parts))]
        places = [absolute(base / tail) for tail in tails for base in bases]
        place = next((place for place in places if os.path.exists(place) and place != root), None)
        if place is not None and place.parent == place:
            raise InputError(
                f"{file}: {split!r} is {entry}, all there is: write the images' folder"
            )
        if place is not None and place.is_dir():
            below = (Path(folder, name) for folder, _, names in os.walk(place) for name in names)
            images += (f for f in below if f.suffix.lower() in IMAGE_SUFFIXES)
        elif place is not None:
            lines = read_text(place, "image list").split("\n")
            images += (absolute(place.parent / x.strip()) for x in lines if x.strip())
    return sorted(set(images))


def label_file(image: Path) -> Path:
    """Where the objects of an image are."""
    parts = list(image.with_suffix(".txt").parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            beside = Path(*parts[:i], "labels", *parts[i + 1 :])
            return beside if beside.exists() else image.with_suffix(".txt")
    return image.with_suffix(".txt")


def yolo_content(images: Iterable[Path], names: Mapping[int, str], *, pose: bool) -> dict[str, Any]:
    """A COCO json's content; an image without a label file has no objects.

    With `pose` what follows a box are keypoints, which are left out.
    """
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [{"id": number, "name": name} for number, name in names.items()]
    for number, image in enumerate(images, 1):
        try:
            height, width = image_size(str(image))
        except InputError:  # found broken, told and left out when all images are checked
            height = width = 1
        row = {"id": number, "file_name": str(image), "height": height, "width": width}
        content["images"].append(row)
        file = label_file(image)
        lines = read_text(file, "label file").splitlines() if file.exists() else []
        for at, line in enumerate(lines, 1):
            if line.strip():
                found = _object(line.split(), names, height, width, f"{file}, line {at}", pose=pose)
                own = {"id": len(content["annotations"]) + 1, "image_id": number, "iscrowd": 0}
                content["annotations"].append({**own, **found})
    return content


def _object(
    words: Sequence[str],
    names: Mapping[int, str],
    height: int,
    width: int,
    where: str,
    *,
    pose: bool,
) -> dict[str, Any]:
    try:
        category, *shares = map(float, words[:5] if pose else words)
    except ValueError:
        raise InputError(
            f"{where} is {' '.join(words)[:60]!r}: write numbers with spaces between them, the "
            "class by its number"
        ) from None
    if category not in names:
        raise InputError(
            f"{where} has class {category:g}, and the classes are numbered {min(names)} to "
            f"{max(names)}: name it in data.yaml, or correct the label"
        )
    if len(shares) < 4 or (len(shares) > 4 and len(shares) % 2):
        raise InputError(
            f"{where} has {len(shares)} numbers after the class: a box has 4 (centre, width, "
            "height), a polygon pairs x y"
        )
    if not all(-1 <= share <= 2 for share in shares):
        raise InputError(f"{where} is not in shares of the image, 0 to 1: divide by its size")
    found: dict[str, Any] = {"category_id": int(category)}
    if len(shares) == 4:
        x, y, w, h = shares
        box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        return {**found, "bbox": box, "area": box[2] * box[3]}
    xs, ys = ([share * side for share in shares[i::2]] for i, side in enumerate((width, height)))
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    polygon = [value for point in zip(xs, ys, strict=True) for value in point]
    return {**found, "bbox": box, "segmentation": [polygon]}


def find_yolo(folder: Folder, made: Path) -> FoundData | None:
    for file in sorted(folder.of(".yaml", ".yml"), key=lambda file: len(file.parts)):
        content = read_data_yaml(file)
        if content is not None:
            break
    else:
        return None
    parts = {split: split_images(content, file, split) for split in ("train", "val", "test")}
    parts = {split: images for split, images in parts.items() if _labelled(images)}
    # a test set is often published without its labels
    needed = ["train", *(["val"] if content.get("val") and "test" not in parts else [])]
    for split in needed:
        if split not in parts:
            raise InputError(
                f"{file}: {split!r} ({content.get(split)}) has no images with labels: correct the "
                "path" + (", or take the line out" if split == "val" else "")
            )
    names, pose = class_names(content, file), "kpt_shape" in content
    return write_yolo(parts, names, folder.root, made, f"{file} (YOLO)", pose=pose)


def find_bare_yolo(folder: Folder, made: Path) -> FoundData | None:
    """YOLO labels without a data.yaml; classes.txt, where there is one, names the classes."""
    labels = [file for file in map(label_file, folder.images) if file.exists()]
    row = r"\s*\d+([ \t]+[-+.\deE]+){4,}\s*(\n|$)"
    if not any(re.match(row, head(file)) for file in labels):
        return None
    lists = [file for file in folder.of(".txt", ".names") if file.name in CLASS_FILES]
    if lists:
        lines = read_text(lists[0], "class file").rstrip().splitlines()
        names = dict(enumerate(line.strip() or f"class {n}" for n, line in enumerate(lines)))
    else:
        texts = (read_text(file, "label file") for file in labels)
        last = max(int(n[:9]) for text in texts for n in re.findall(r"(?m)^\s*(\d+)\s", text))
        if last >= MOST_CLASSES:
            raise InputError(f"{folder.root}: a label has class {last}: write a data.yaml of names")
        names = {number: f"class {number}" for number in range(last + 1)}
    parts: dict[str, list[Path]] = defaultdict(list)
    for image in folder.images:
        parts[split_of(image.relative_to(folder.root).parent) or "train"].append(image)
    said = f"{folder.root} (YOLO labels without data.yaml)"
    return write_yolo(parts, names, folder.root, made, said, pose=False)


def _labelled(images: Sequence[Path]) -> bool:
    return any(label_file(image).exists() for image in images)


def write_yolo(
    parts: Mapping[str, Sequence[Path]],
    names: Mapping[int, str],
    root: Path,
    made: Path,
    said: str,
    *,
    pose: bool,
) -> FoundData:
    train = parts.get("train", [])
    test = next((s for s in ("test", "val") if s in parts and set(parts[s]) != set(train)), "")
    used = [*train, *parts[test]] if train and test else train or sorted({*chain(*parts.values())})
    without = sum(not label_file(image).exists() for image in used)
    if without:
        said += f", {without} images without a label file taken for images without objects"
    if train and test:
        for split in ("train", test):
            content = yolo_content(parts[split], names, pose=pose)
            write_text(json_file(made, split), json.dumps(content))
        said = f"{said}: train is trained, {test} tested on"
        return FoundData(said, coco_uris(made, "train", test, root))
    content = yolo_content(used, names, pose=pose)
    labels: dict[str, set[str]] = {row["file_name"]: set() for row in content["images"]}
    for row in content["annotations"]:
        name = content["images"][row["image_id"] - 1]["file_name"]
        labels[name].add(str(row["category_id"]))
    return write_coco(content, labels, root, made, said)
