"""A trained detector as a function of one image."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pycocotools.mask
from PIL import Image

from moco_det.runs.engines import choose_engine, load_config, load_engine
from moco_det.runs.folder import CONFIG
from moco_det.runs.predict import class_names, describe_images, whole_config


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
        file = Path(run) / CONFIG if Path(run).is_dir() else Path(run)
        name = choose_engine(engine).engine
        cfg = load_config(name, file, whole_config(file, weights, overrides))
        self.detector = load_engine(name).open_detector(cfg)
        self.classes = class_names(self.detector, classes)
        self.threshold = threshold
        self.with_masks = bool(cfg.MODEL.MASK_ON)

    def __call__(self, image: str | Path | Image.Image | npt.NDArray[np.uint8]) -> Prediction:
        """Detect on an image file, a PIL image or an array [H, W, 3] of uint8 in RGB order."""
        if isinstance(image, (str, Path)):
            return self._detect(Path(image))
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image, "RGB")
        with tempfile.TemporaryDirectory() as folder:  # both engines read files
            path = Path(folder) / "image.bmp"
            picture.convert("RGB").save(path)
            return self._detect(path)

    def _detect(self, path: Path) -> Prediction:
        dataset = describe_images({path.name: path}, self.classes)
        rows = [r for r in self.detector.detect(dataset, "") if r["score"] >= self.threshold]
        rows.sort(key=lambda row: -row["score"])
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
