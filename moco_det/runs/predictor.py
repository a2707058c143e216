"""A trained detector as a function of one image."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask
from PIL import Image
from tqdm import tqdm

from moco_det.data import DetectionDataset, Record, image_size, load_datasets
from moco_det.data.check import look_at_each
from moco_det.data.image import image_fault
from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import MOST_DATA, read_regular
from moco_det.runs.engines import choose_engine, load_config, load_engine
from moco_det.runs.folder import CONFIG
from moco_det.settings.engine import FINAL, Detector

logger = logging.getLogger(__name__)

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Prediction:
    """N detections on an image of H x W pixels, the best first.

    ``boxes`` [N, 4] are float32 (x0, y0, x1, y1) in absolute pixels, ``scores`` [N] float32,
    ``classes`` N names, ``masks`` [N, H, W] bool, or None where the detector has no mask head.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    classes: tuple[str, ...]
    masks: npt.NDArray[np.bool_] | None


class Predictor:
    """The detector of a run: ``Predictor("runs/x")("photo.jpg")``.

    ``run`` is a run's folder, or a config file. The weights are the model_final.pth in it, or
    those of ``weights``; the class names are the run's, or ``classes``. Detections below the
    score ``threshold`` are left out. Raises InputError where no whole detector is to be had.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        weights: str | Path | None = None,
        classes: Sequence[str] = (),
        threshold: float = 0.5,
        overrides: Sequence[str] = (),
        engine: str = "auto",
    ) -> None:
        if not 0.0 <= threshold <= 1.0:
            raise InputError(f"the score threshold is {threshold}: it lies between 0 and 1")
        file = Path(run) / CONFIG if Path(run).is_dir() else Path(run)
        if weights is None and (file.parent / FINAL).is_file():
            weights = file.parent / FINAL  # where a run leaves both
        whole = [] if weights is None else ["MODEL.WEIGHTS", str(weights)]
        self.choice = choose_engine(engine)
        self.cfg = load_config(self.choice.engine, file, [*whole, *overrides])
        self.detector = load_engine(self.choice.engine).open_detector(self.cfg)
        self.classes = class_names(self.detector, classes)
        self.threshold = threshold
        self.with_masks = bool(self.cfg.MODEL.MASK_ON)

    def rows(self, dataset: DetectionDataset, title: str) -> Rows:
        """COCO result rows of what reaches the threshold; `title` is a progress bar's, or ""."""
        found = self.detector.detect(dataset, title)
        return [row for row in found if row["score"] >= self.threshold]

    def __call__(self, image: str | Path | Image.Image | npt.NDArray[np.uint8]) -> Prediction:
        """Detect on an image file, a PIL image or an array [H, W, 3] of uint8 in RGB order."""
        if isinstance(image, (str, Path)):
            return self._detect(Path(image))
        picture = image if isinstance(image, Image.Image) else _picture(np.asarray(image))
        with tempfile.TemporaryDirectory() as folder:  # both engines read files
            path = Path(folder) / "image.bmp"
            picture.convert("RGB").save(path)
            return self._detect(path)

    def _detect(self, path: Path) -> Prediction:
        dataset = describe_images({path.name: path}, self.classes)
        rows = sorted(self.rows(dataset, ""), key=lambda row: -row["score"])
        names = dict(zip(dataset.category_ids, dataset.classes, strict=True))
        boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = None
        if self.with_masks:
            record = dataset.records[0]
            masks = np.zeros((len(rows), record.height, record.width), np.bool_)
            for mask, row in zip(masks, rows, strict=True):
                mask[:] = pycocotools.mask.decode(row["segmentation"])
        return Prediction(
            boxes,
            np.array([row["score"] for row in rows], np.float32),
            tuple(names[row["category_id"]] for row in rows),
            masks,
        )


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
        lines = read_regular(path, MOST_DATA).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ()
    for line in reversed(lines):
        try:
            names = tuple(str(name) for name in json.loads(line)["dataset"]["classes"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if len(names) == count:
            return names
    return ()


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
        return image_fault(str(path), height, width) or Record(name, str(path), height, width)

    bar = tqdm(total=len(images), desc="checking images", unit="img", delay=2)
    records, faults = look_at_each(look, images.items(), bar, strict=strict)
    if not records:
        more = f", and so are {len(faults) - 1} more" if len(faults) > 1 else ""
        raise InputError(f"no image can be used: {faults[0]}{more}")
    for fault in faults:
        logger.warning("skipped: %s", fault)
    ids = tuple(range(1, len(classes) + 1))
    return DetectionDataset(
        "images", "images", tuple(records), tuple(classes), ids, skipped=tuple(faults)
    )


def _picture(array: npt.NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise InputError(
            "an image is a path, a PIL image or an RGB array [H, W, 3] of uint8, not an array "
            f"{list(array.shape)} of {array.dtype}"
        )
    return Image.fromarray(array)
