"""Detections on anybody's images: a folder of drawn images and of the numbers behind them."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image
from tqdm import tqdm

from moco_det.data import DetectionDataset, read_image
from moco_det.foundation.atomic import new_folder, write_text
from moco_det.foundation.errors import InputError
from moco_det.report.detections import Box
from moco_det.runs.drawing import class_colours, draw_detections
from moco_det.runs.predictor import Predictor, Rows, describe_images
from moco_det.scoring import write_predictions

logger = logging.getLogger(__name__)

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv")
FRAMES = "take its frames first, as by ffmpeg -i VIDEO FOLDER/%06d.png, and name that folder"
# Written as they came; whatever else was read is drawn into a PNG.
KEPT = (".jpg", ".jpeg", ".png")


def readable_suffixes() -> set[str]:
    """The suffixes of every image format that the installed Pillow reads, but for videos."""
    formats = Image.registered_extensions()
    return {suffix for suffix, name in formats.items() if name in Image.OPEN}.difference(VIDEOS)


def find_images(inputs: Iterable[str | Path]) -> dict[str, Path]:
    """{name: path} of the files named and of all images below the folders named, in order.

    A name is the path below its folder, or the file's own; a second image of one name has a
    number. InputError for what does not exist, a folder without images and a video that is named;
    videos in a folder are counted in a warning.
    """
    suffixes = readable_suffixes()
    found: list[tuple[str, Path]] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            files = {f.relative_to(path).as_posix(): f for f in sorted(path.rglob("*"))}
            shown = {n: f for n, f in files.items() if "/." not in f"/{n}" and f.is_file()}
            videos = sum(f.suffix.lower() in VIDEOS for f in shown.values())
            if videos:
                logger.warning("%s: videos are left out, %d of them: %s", path, videos, FRAMES)
            below = [(n, f) for n, f in shown.items() if f.suffix.lower() in suffixes]
            if not below:
                raise InputError(f"folder {path} holds no images that Pillow reads: name another")
            found += below
        elif path.suffix.lower() in VIDEOS and path.is_file():
            raise InputError(f"{path} is a video, and images are read here: {FRAMES}")
        elif path.is_file():
            found.append((path.name, path))
        else:
            raise InputError(f"{path} does not exist: name images or folders of images")
    images: dict[str, Path] = {}
    seen: set[Path] = set()
    taken: set[str] = set()
    for name, path in found:
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        own = _free([name], taken)
        if own != name:
            logger.warning("%s is called %s, for another image has its name", path, own)
        images[own] = path
    return images


def drawn_names(names: Iterable[str]) -> dict[str, str]:
    """{an image's name: the file it is drawn into}, all different.

    JPEG and PNG keep their names; "pic.webp" becomes "pic.png", or "pic.webp.png" beside another
    image of that name.
    """
    kept = [name for name in names if name.lower().endswith(KEPT)]
    taken = {name.lower() for name in kept}
    found, suffixes = dict(zip(kept, kept, strict=True)), readable_suffixes()
    for name in names:
        if name not in found:
            path = PurePosixPath(name)
            stem = path.with_suffix("") if path.suffix.lower() in suffixes else path
            found[name] = _free([f"{stem}.png", f"{name}.png"], taken)
    return found


def _free(names: Sequence[str], taken: set[str]) -> str:
    """The first name that is not taken, of these or with a number; a system may ignore case."""
    last = PurePosixPath(names[-1])
    numbered = (str(last.with_stem(f"{last.stem}_{number}")) for number in itertools.count(2))
    free = next(name for name in itertools.chain(names, numbered) if name.lower() not in taken)
    taken.add(free.lower())
    return free


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


def predict_folder(
    predictor: Predictor, images: dict[str, Path], output: Path, *, strict: bool = False
) -> Summary:
    """Draw each image's detections into a new folder; it is whole or absent.

    The folder has the images under `drawn_names`, predictions.json with what is drawn (COCO result
    rows; image_id is the image's name) and classes.json, {category_id: class name}.
    """
    dataset = describe_images(images, predictor.classes, strict=strict)
    with new_folder(output) as folder:
        rows = predictor.rows(dataset, "detecting")
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
    files = drawn_names([str(record.image_id) for record in dataset.records])
    for record in tqdm(dataset.records, desc="drawing", unit="img", delay=2):
        boxes = of_image.get(record.image_id, [])
        drawn = draw_detections(read_image(record.file_name), boxes, colours)
        path = folder / files[str(record.image_id)]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn).save(path, quality=92)
