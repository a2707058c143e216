"""What the pre-training arms read: labelled crops of a data set's objects, or a list of its images.

Both name images only; `pretrain` knows nothing of boxes.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from pathlib import Path

from tqdm import tqdm

from moco_det.data.boxes import Box
from moco_det.data.image import read_image, write_jpeg
from moco_det.data.records import DetectionDataset, Record
from moco_det.foundation.atomic import new_folder, write_text
from moco_det.foundation.errors import InputError

# The second class of crops where the objects have one: a part of an image that touches no object.
BACKGROUND = "no_object"
TRIES = 30


def write_crops(
    dataset: DetectionDataset,
    out_dir: str | Path,
    *,
    context: float = 0.2,
    minimum: float = 16,
    background: bool = False,
    progress: bool = True,
) -> dict[str, int]:
    """Cut every object out into out_dir/<class>/<image>_<n>.jpg; returns crops by class name.

    `context`: share of the box's longer side added on each side. Boxes whose shorter side is below
    `minimum` pixels, crowds and difficult objects are left out. With `background` each object also
    gives a crop of its size, or a smaller one, that touches none, into out_dir/no_object, where
    there is room for it. The folder appears complete or not at all; raises InputError when it holds
    something already or no object is large enough.
    """
    counts = {**dict.fromkeys(dataset.classes, 0), **({BACKGROUND: 0} if background else {})}
    title = f"cutting crops of {dataset.name}"
    bar = tqdm(dataset.records, desc=title, unit="img", mininterval=1, disable=not progress)
    with new_folder(out_dir) as folder:
        for record in bar:
            wanted = [
                (number, dataset.classes[a.category], a.bbox)
                for number, a in enumerate(record.annotations)
                if not (a.iscrowd or a.difficult)
                and min(a.bbox[2] - a.bbox[0], a.bbox[3] - a.bbox[1]) >= minimum
            ]
            if not wanted:
                continue
            image = read_image(record.file_name, "BGR")
            for number, name, box in wanted:
                target = folder / _safe(name) / f"{_safe(str(record.image_id))}_{number}.jpg"
                target.parent.mkdir(exist_ok=True)
                left, top, right, bottom = _enlarged(box, context)
                write_jpeg(target, image[top:bottom, left:right])
                counts[name] += 1
                side = max(right - left, bottom - top)
                place = _free_place(record, side, minimum, f"{record.image_id} {number}")
                if background and place is not None:
                    (folder / BACKGROUND).mkdir(exist_ok=True)
                    left, top, side = place
                    square = image[top : top + side, left : left + side]
                    write_jpeg(folder / BACKGROUND / target.name, square)
                    counts[BACKGROUND] += 1
        if not any(counts.values()):
            raise InputError(
                f"data set {dataset.name} has no object of {minimum} px or more to cut out: "
                "lower the minimum"
            )
    return counts


def largest_objects(dataset: DetectionDataset) -> dict[str, float]:
    """The largest shorter side of the objects of each class, crowds and difficult ones left out."""
    sides: dict[str, float] = {}
    for a in (a for record in dataset.records for a in record.annotations):
        if not (a.iscrowd or a.difficult):
            name = dataset.classes[a.category]
            side = min(a.bbox[2] - a.bbox[0], a.bbox[3] - a.bbox[1])
            sides[name] = max(side, sides.get(name, 0.0))
    return sides


def _free_place(
    record: Record, side: int, minimum: float, seed: str
) -> tuple[int, int, int] | None:
    """Left, top and side of a square without any object, at most `side` wide; None where none is.

    Each try that fails makes the square a little smaller.
    """
    draw = random.Random(seed)
    for _ in range(TRIES):
        side = min(side, record.height, record.width)
        left, top = draw.randint(0, record.width - side), draw.randint(0, record.height - side)
        right, bottom = left + side, top + side
        if not any(
            x0 < right and left < x1 and y0 < bottom and top < y1
            for x0, y0, x1, y1 in (a.bbox for a in record.annotations)
        ):
            return left, top, side
        side = max(math.ceil(minimum), int(side * 0.93))
    return None


def write_image_list(dataset: DetectionDataset, path: str | Path) -> int:
    """Write the absolute image paths, one per line; returns how many."""
    write_text(path, "".join(f"{record.file_name}\n" for record in dataset.records))
    return len(dataset.records)


def _enlarged(box: Box, context: float) -> tuple[int, int, int, int]:
    """Whole pixels around the box and its context; right and bottom may lie beyond the image."""
    x0, y0, x1, y1 = box
    margin = context * max(x1 - x0, y1 - y0)
    left, top = max(math.floor(x0 - margin), 0), max(math.floor(y0 - margin), 0)
    return left, top, math.ceil(x1 + margin), math.ceil(y1 + margin)


def _safe(name: str) -> str:
    """A class name or image id as a file name; what is not a letter or digit is its code."""
    safe = re.sub(r"[^\w\-. ]|^\.", lambda match: f"%{ord(match[0]):02X}", name)
    # file systems end at 255 bytes
    return safe if len(safe.encode()) <= 200 else hashlib.sha256(name.encode()).hexdigest()
