"""What the pre-training arms read: labelled crops of a data set's objects, or a list of its images.

Both name images only; `pretrain` knows nothing of boxes.
"""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from moco_det.data.image import read_image
from moco_det.data.records import DetectionDataset
from moco_det.foundation.atomic import new_folder, write_text
from moco_det.foundation.errors import InputError

JPEG_QUALITY = 95


def write_crops(
    dataset: DetectionDataset,
    out_dir: str | Path,
    *,
    context: float = 0.2,
    minimum: int = 16,
    progress: bool = True,
) -> dict[str, int]:
    """Cut every object out into out_dir/<class>/<image>_<n>.jpg; returns crops by class name.

    `context`: share of the box's longer side added on each side. Boxes whose shorter side is below
    `minimum` pixels, crowds and difficult objects are left out. The folder appears complete or not
    at all; raises InputError when it holds something already or no object is large enough.
    """
    counts = dict.fromkeys(dataset.classes, 0)
    with new_folder(out_dir) as folder:
        bar = tqdm(
            dataset.records,
            desc=f"cutting crops of {dataset.name}",
            unit="img",
            mininterval=1,
            disable=not progress,
        )
        for record in bar:
            wanted = [
                (number, a)
                for number, a in enumerate(record.annotations)
                if not a.iscrowd and not a.difficult and _shorter_side(a.bbox) >= minimum
            ]
            if not wanted:
                continue
            image = read_image(record.file_name, "BGR")
            for number, annotation in wanted:
                name = dataset.classes[annotation.category]
                target = folder / _safe(name)
                target.mkdir(exist_ok=True)
                crop = _crop(image, annotation.bbox, context)
                file = target / f"{_safe(str(record.image_id))}_{number}.jpg"
                options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
                done, content = cv2.imencode(".jpg", crop, options)
                if not done:
                    raise RuntimeError(f"the JPEG encoder refused a crop of {record.file_name}")
                file.write_bytes(content.tobytes())
                counts[name] += 1
        if not any(counts.values()):
            raise InputError(
                f"data set {dataset.name} has no object of {minimum} px or more to cut out: "
                "lower the minimum"
            )
    return counts


def write_image_list(dataset: DetectionDataset, path: str | Path) -> int:
    """Write the absolute image paths, one a line; returns how many."""
    write_text(path, "".join(f"{record.file_name}\n" for record in dataset.records))
    return len(dataset.records)


def _shorter_side(box: tuple[float, float, float, float]) -> float:
    return min(box[2] - box[0], box[3] - box[1])


def _crop(image: np.ndarray, box: tuple[float, float, float, float], context: float) -> np.ndarray:
    height, width = image.shape[:2]
    margin = context * max(box[2] - box[0], box[3] - box[1])
    x0, y0 = max(int(np.floor(box[0] - margin)), 0), max(int(np.floor(box[1] - margin)), 0)
    x1 = min(int(np.ceil(box[2] + margin)), width)
    y1 = min(int(np.ceil(box[3] + margin)), height)
    return np.ascontiguousarray(image[y0:y1, x0:x1])


def _safe(name: str) -> str:
    """A class name or image id as a file name; what is not a letter or digit is its code."""
    return re.sub(r"[^\w\-. ]|^\.", lambda match: f"%{ord(match[0]):02X}", name)
