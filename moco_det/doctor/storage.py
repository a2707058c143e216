"""Which data sets are there under detectron2's names, whole or not, and how much room is left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from moco_det.data.catalog import datasets_root
from moco_det.data.catalog_names import BUILTIN_COCO, BUILTIN_VOC
from moco_det.doctor.finding import FAULT, NOTE, OK, Finding

# Images of the splits that the configs name, as their makers count them.
EXPECTED = {
    "coco_2017_train": 118287,
    "coco_2017_val": 5000,
    "voc_2007_trainval": 5011,
    "voc_2007_test": 4952,
    "voc_2012_trainval": 11540,
}
# A checkpoint of an R50 detector with its momentum is about 0.35 GB (44 million parameters of
# 4 bytes, twice), and a 2x schedule leaves 36 of them.
ROOM_GB = 15.0
SHARED_MEMORY_GB = 1.0


def check_datasets(root: Path | None = None) -> Iterator[Finding]:
    """A line for each data set that is there, whole or in part; those absent in one line."""
    root = root or datasets_root()
    shown = root.absolute()
    if not root.is_dir():
        yield Finding(
            NOTE,
            f"no folder {shown}: data sets by detectron2's names are looked for there; set "
            "DETECTRON2_DATASETS, or name data by voc://DIR?split=S and coco://FILE?images=DIR",
        )
        return
    absent = []
    for name in (*BUILTIN_COCO, *BUILTIN_VOC):
        finding = check_coco(name, root) if name in BUILTIN_COCO else check_voc(name, root)
        if finding is None:
            absent.append(name)
        else:
            yield finding
    if absent:
        yield Finding(NOTE, f"not under {shown}: {', '.join(absent)}")


def check_coco(name: str, root: Path) -> Finding | None:
    """The annotation file and as many images as it lists."""
    json_file, images = (root / part for part in BUILTIN_COCO[name])
    if not json_file.is_file():
        return None
    listed = count_text(json_file, b'"file_name"')
    found = count_files(images)
    if found < listed:
        return Finding(
            FAULT,
            f"{name}: {json_file.name} lists {listed:,} images, {images} holds {found:,}",
            "download the images again and unpack all of them",
        )
    return counted(name, listed)


def check_voc(name: str, root: Path) -> Finding | None:
    """The list of the split, with an image and an annotation for each of its lines."""
    folder, split = BUILTIN_VOC[name]
    listing = root / folder / "ImageSets" / "Main" / f"{split}.txt"
    if not listing.is_file():
        return None
    ids = [line.split()[0] for line in listing.read_text().splitlines() if line.strip()]
    images = stems(root / folder / "JPEGImages")
    boxes = stems(root / folder / "Annotations")
    missing = [one for one in ids if one not in images or one not in boxes]
    if missing:
        return Finding(
            FAULT,
            f"{name}: {len(missing):,} of {len(ids):,} images lack their JPEG or their XML, "
            f"{missing[0]} first",
            "unpack the archive of this year again",
        )
    return counted(name, len(ids))


def counted(name: str, number: int) -> Finding:
    """OK, or a fault where the maker counts more images than there are listed."""
    expected = EXPECTED.get(name, number)
    if number != expected:
        return Finding(
            FAULT,
            f"{name}: {number:,} images, its maker counts {expected:,}",
            "results of it are comparable with nothing published: fetch the whole split",
        )
    return Finding(OK, f"{name}: {number:,} images")


def check_disk(output: Path | None = None, shared: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Room for the checkpoints of a run, and for the batches that loading processes hand over."""
    folder = (output or Path.cwd()).absolute()
    free = shutil.disk_usage(folder).free / 1e9
    if free < ROOM_GB:
        yield Finding(
            FAULT,
            f"{free:.1f} GB free at {folder}; the checkpoints of a 2x run take about 13",
            "set OUTPUT_DIR to another disk, or SOLVER.CHECKPOINT_PERIOD higher",
        )
    else:
        yield Finding(OK, f"{free:,.0f} GB free at {folder}")
    if shared.is_dir():
        room = shutil.disk_usage(shared).total / 1e9
        if room < SHARED_MEMORY_GB:
            yield Finding(
                FAULT,
                f"{shared} has {room:.2f} GB: loading processes hand batches over through it",
                "docker run --shm-size 8g, or DATALOADER.NUM_WORKERS 0",
            )


def count_text(path: Path, text: bytes, block: int = 1 << 24) -> int:
    """How often a text occurs in a file, read in blocks: COCO's annotations are half a gigabyte."""
    total, tail = 0, b""
    with open(path, "rb") as file:
        while data := file.read(block):
            data = tail + data
            total += data.count(text)
            tail = data[len(data) - len(text) + 1 :] if len(data) >= len(text) else data
    return total


def count_files(folder: Path) -> int:
    return sum(1 for _ in os.scandir(folder)) if folder.is_dir() else 0


def stems(folder: Path) -> set[str]:
    """File names without their endings."""
    if not folder.is_dir():
        return set()
    return {entry.name.rpartition(".")[0] for entry in os.scandir(folder)}
