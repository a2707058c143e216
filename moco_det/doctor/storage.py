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
    "keypoints_coco_2017_train": 118287,
    "keypoints_coco_2017_val": 5000,
    "cityscapes_fine_instance_seg_train": 2975,
    "cityscapes_fine_instance_seg_val": 500,
}
COCO_2017 = ("coco/train2017", "coco/val2017")
# name -> (json, folders that its images are in), below $DETECTRON2_DATASETS
LISTED = {
    **{name: (json_file, (images,)) for name, (json_file, images) in BUILTIN_COCO.items()},
    "keypoints_coco_2017_train": (
        "coco/annotations/person_keypoints_train2017.json",
        ("coco/train2017",),
    ),
    "keypoints_coco_2017_val": (
        "coco/annotations/person_keypoints_val2017.json",
        ("coco/val2017",),
    ),
    "lvis_v0.5_train": ("lvis/lvis_v0.5_train.json", COCO_2017),
    "lvis_v0.5_val": ("lvis/lvis_v0.5_val.json", COCO_2017),
}
CITYSCAPES = {f"cityscapes_fine_instance_seg_{split}": split for split in ("train", "val")}
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
    checks = {
        **dict.fromkeys(LISTED, check_listed),
        **dict.fromkeys(BUILTIN_VOC, check_voc),
        **dict.fromkeys(CITYSCAPES, check_cityscapes),
    }
    for name, check in checks.items():
        finding = check(name, root)
        if finding is None:
            absent.append(name)
        else:
            yield finding
    if absent:
        yield Finding(NOTE, f"not under {shown}: {', '.join(absent)}")


def check_listed(name: str, root: Path) -> Finding | None:
    """A json of COCO's form and as many images as it lists."""
    json_file, folders = LISTED[name]
    if not (root / json_file).is_file():
        return None
    listed = count_text(root / json_file, b'"file_name"')
    found = sum(count_files(root / folder) for folder in folders)
    if found < listed:
        images = " and ".join(str(root / folder) for folder in folders)
        return Finding(
            FAULT,
            f"{name}: {Path(json_file).name} lists {listed:,} images, {images} holds {found:,}",
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


def check_cityscapes(name: str, root: Path) -> Finding | None:
    """The images of a split, each with the outlines of its objects."""
    split = CITYSCAPES[name]
    images, outlines = (
        {file.name.removesuffix(end) for file in (root / "cityscapes" / part).glob(f"*/*{end}")}
        for part, end in (
            (f"leftImg8bit/{split}", "_leftImg8bit.png"),
            (f"gtFine/{split}", "_gtFine_polygons.json"),
        )
    )
    if not images and not outlines:
        return None
    alone = sorted(images ^ outlines)
    if alone:
        return Finding(
            FAULT,
            f"{name}: {len(alone):,} of {len(images | outlines):,} images lack their PNG or their "
            f"outlines, {alone[0]} first",
            "unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip again",
        )
    return counted(name, len(images))


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
