"""Detections on anybody's images: a folder of drawn images and of the numbers behind them."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image
from tqdm import tqdm

from moco_det.data import DetectionDataset, Record, image_size, load_datasets, read_image
from moco_det.data.image import image_fault
from moco_det.foundation.atomic import new_folder, write_text
from moco_det.foundation.errors import InputError
from moco_det.report.detections import Box
from moco_det.runs.drawing import class_colours, draw_detections
from moco_det.scoring import write_predictions
from moco_det.settings.engine import Detector

logger = logging.getLogger(__name__)

Rows = list[dict[str, Any]]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv")
FRAMES = "take its frames first, as by ffmpeg -i VIDEO FOLDER/%06d.png, and name that folder"
# Written as they came; whatever else was read is drawn into a PNG.
KEPT = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Summary:
    """What `predict_folder` did."""

    images: int
    detections: int
    skipped: tuple[str, ...]

    def line(self, output: Path) -> str:
        """One sentence for the screen."""
        left_out = f", {len(self.skipped)} skipped" if self.skipped else ""
        line = f"{self.detections} detections on {self.images} images{left_out}, in {output}"
        if self.images and not self.detections:
            line += " (none reached --confidence-threshold: a lower one shows more)"
        return line


def whole_config(
    config_file: str | Path, weights: str | Path | None, overrides: Sequence[str]
) -> list[str]:
    """The overrides of a config with MODEL.WEIGHTS among them: the file named, else the
    model_final.pth beside the config, where a run leaves both. What `overrides` say comes last."""
    beside = Path(config_file).parent / "model_final.pth"
    if weights is None and beside.is_file():
        weights = beside
    return [*(() if weights is None else ("MODEL.WEIGHTS", str(weights))), *overrides]


def class_names(detector: Detector, given: Sequence[str] = ()) -> tuple[str, ...]:
    """The detector's classes in its order.

    As given; else from results.jsonl beside the weights, which every run writes there; else read
    from the training data that its config names. InputError where none is to be had or where
    their number is not the detector's.
    """
    if given:
        names, source = tuple(given), "--classes"
    else:
        source = str(detector.weights.parent / "results.jsonl")
        names = _recorded(Path(source), detector.classes)
    if not names:
        source = ", ".join(detector.train)
        try:
            names = load_datasets(detector.train).classes
        except InputError as error:
            raise InputError(
                f"the names of the {detector.classes} classes are unknown: there is no row of them "
                f"beside {detector.weights}, and the training data cannot be read ({error}); "
                "give --classes NAME NAME ..."
            ) from None
    if len(names) != detector.classes or len(set(names)) != len(names):
        raise InputError(
            f"{source} names {len(set(names))} classes ({', '.join(names[:8])}), and the detector "
            f"has {detector.classes}: give one name each by --classes"
        )
    return names


def _recorded(path: Path, count: int) -> tuple[str, ...]:
    """The classes of the last row that has as many, or none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ()
    for line in reversed(lines):
        try:
            names = tuple(str(name) for name in json.loads(line)["dataset"]["classes"])
        except (ValueError, KeyError, TypeError):
            continue
        if len(names) == count:
            return names
    return ()


def find_images(inputs: Iterable[str | Path]) -> dict[str, Path]:
    """{name: path} of the files named and of all images below the folders named, in order.

    A name is the path below its folder, or the file's own; where two would be drawn into the same
    file the second has a number. InputError for what does not exist, a folder without images and
    a video that is named; videos in a folder are counted in a warning.
    """
    found: list[tuple[str, Path]] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            files = sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES + VIDEOS)
            below = [(f.relative_to(path).as_posix(), f) for f in files if f.is_file()]
            below = [(name, f) for name, f in below if "/." not in f"/{name}"]  # no hidden ones
            videos = [f for _, f in below if f.suffix.lower() in VIDEOS]
            if videos:
                logger.warning("%s: videos are left out, %d of them: %s", path, len(videos), FRAMES)
            below = [(name, f) for name, f in below if f.suffix.lower() in SUFFIXES]
            if not below:
                raise InputError(
                    f"folder {path} holds no images ({', '.join(SUFFIXES)}): name another"
                )
            found += below
        elif path.suffix.lower() in VIDEOS and path.is_file():
            raise InputError(f"{path} is a video, and images are read here: {FRAMES}")
        elif path.is_file():
            found.append((path.name, path))
        else:
            raise InputError(f"{path} does not exist: name images or folders of images")
    images: dict[str, Path] = {}
    seen: set[Path] = set()
    drawn: set[str] = set()
    for name, path in found:
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        free = name
        for number in itertools.count(2):
            if _drawn_name(free).lower() not in drawn:
                break
            free = str(PurePosixPath(name).with_stem(f"{PurePosixPath(name).stem}_{number}"))
        if free != name:
            logger.warning("%s is called %s, for another image has its name", path, free)
        drawn.add(_drawn_name(free).lower())
        images[free] = path
    return images


def describe_images(
    images: dict[str, Path], classes: Sequence[str], *, strict: bool = False
) -> DetectionDataset:
    """The images that decode as a data set without annotations; `skipped` says why others do not.

    InputError where none is left, and on the first bad one under `strict`.
    """

    def look(item: tuple[str, Path]) -> Record | str:
        name, path = item
        try:
            height, width = image_size(str(path))
        except InputError as error:
            return str(error)
        fault = image_fault(str(path), height, width)
        return Record(name, str(path), height, width) if fault is None else fault

    records, faults = [], []
    with ThreadPoolExecutor(max_workers=4) as pool:
        looked = pool.map(look, images.items())
        for result in tqdm(looked, total=len(images), desc="checking images", unit="img", delay=2):
            if isinstance(result, Record):
                records.append(result)
                continue
            faults.append(result)
            if strict:
                pool.shutdown(wait=False, cancel_futures=True)
                raise InputError(f"{result} (--strict)")
    if not records:
        more = f", and so are {len(faults) - 1} more" if len(faults) > 1 else ""
        raise InputError(f"no image can be used: {faults[0]}{more}")
    for fault in faults:
        logger.warning("skipped: %s", fault)
    ids = tuple(range(1, len(classes) + 1))
    return DetectionDataset(
        "images", "images", tuple(records), tuple(classes), ids, skipped=tuple(faults)
    )


def predict_folder(
    detector: Detector,
    images: dict[str, Path],
    output: Path,
    *,
    classes: Sequence[str],
    threshold: float,
    strict: bool = False,
) -> Summary:
    """Draw each image's detections of at least this score into a new folder; it is whole or absent.

    The folder has the images under their names, predictions.json with what is drawn (COCO result
    rows; image_id is the image's name) and classes.json, {category_id: class name}.
    """
    if not 0.0 <= threshold <= 1.0:
        raise InputError(f"the score threshold is {threshold}: it lies between 0 and 1")
    dataset = describe_images(images, classes, strict=strict)
    with new_folder(output) as folder:
        rows = [row for row in detector.detect(dataset, "detecting") if row["score"] >= threshold]
        write_predictions(folder / "predictions.json", rows)
        names = dict(zip(dataset.category_ids, dataset.classes, strict=True))
        write_text(folder / "classes.json", json.dumps(names, indent=1) + "\n")
        _draw_all(dataset, rows, names, folder)
    return Summary(len(dataset), len(rows), dataset.skipped)


def _draw_all(dataset: DetectionDataset, rows: Rows, names: dict[int, str], folder: Path) -> None:
    of_image: dict[int | str, list[Box]] = {}
    for row in rows:
        x, y, w, h = row["bbox"]
        box = Box(
            (x, y, x + w, y + h), names[row["category_id"]], row["score"], row.get("segmentation")
        )
        of_image.setdefault(row["image_id"], []).append(box)
    colours = class_colours(dataset.classes)
    for record in tqdm(dataset.records, desc="drawing", unit="img", delay=2):
        boxes = of_image.get(record.image_id, [])
        drawn = draw_detections(read_image(record.file_name), boxes, colours)
        path = folder / _drawn_name(str(record.image_id))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn).save(path, quality=92)


def _drawn_name(name: str) -> str:
    return name if name.lower().endswith(KEPT) else f"{name}.png"
