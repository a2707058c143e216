"""Which data sets are there under detectron2's names, whole or not, and how much room is left."""

from __future__ import annotations

import mmap
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from moco_det.data.catalog import datasets_root
from moco_det.data.catalog_names import BUILTIN_COCO, BUILTIN_VOC
from moco_det.doctor.finding import FAULT, NOTE, OK, Finding
from moco_det.foundation.reading import open_regular, read_text

# Images of the splits that the configs name, as their makers count them.
EXPECTED = dict(
    coco_2017_train=118287,
    coco_2017_val=5000,
    voc_2007_trainval=5011,
    voc_2007_test=4952,
    voc_2012_trainval=11540,
    cityscapes_fine_instance_seg_train=2975,
    cityscapes_fine_instance_seg_val=500,
)
# name -> (json, folders that its images are in), below $DETECTRON2_DATASETS
LISTED: dict[str, tuple[str, tuple[str, ...]]] = {
    name: (json_file, (images,)) for name, (json_file, images) in BUILTIN_COCO.items()
}
for _split in ("train", "val"):
    LISTED[f"keypoints_coco_2017_{_split}"] = (
        f"coco/annotations/person_keypoints_{_split}2017.json",
        (f"coco/{_split}2017",),
    )
    LISTED[f"lvis_v0.5_{_split}"] = (
        f"lvis/lvis_v0.5_{_split}.json",
        ("coco/train2017", "coco/val2017"),
    )
CITYSCAPES = {f"cityscapes_fine_instance_seg_{split}": split for split in ("train", "val")}
# A checkpoint of an R50 detector with its momentum is about 0.35 GB (44 million parameters of
# 4 bytes, twice), and a 2x schedule leaves 36 of them.
ROOM_GB = 15.0
SHARED_MEMORY_GB = 1.0


def check_datasets(root: Path | None = None) -> Iterator[Finding]:
    """A line per data set that is there, whole or in part; those absent in one line."""
    root = root or datasets_root()
    shown = root.absolute()
    if not root.is_dir():
        yield Finding(
            NOTE,
            f"no folder {shown}: data sets by detectron2's names are looked for there; set "
            "DETECTRON2_DATASETS, or name data by voc://DIR?split=S and coco://FILE?images=DIR",
        )
        return
    found = {
        **{name: check_listed(name, root) for name in LISTED},
        **{name: check_voc(name, root) for name in BUILTIN_VOC},
        **{name: check_cityscapes(name, root) for name in CITYSCAPES},
    }
    yield from filter(None, found.values())
    absent = [name for name, finding in found.items() if finding is None]
    if absent:
        yield Finding(NOTE, f"not under {shown}: {', '.join(absent)}")


def check_listed(name: str, root: Path) -> Finding | None:
    """A json of COCO's form and as many images as it lists."""
    json_file, folders = root / LISTED[name][0], [root / folder for folder in LISTED[name][1]]
    if not json_file.is_file():
        return None
    listed = count_text(json_file, b'"file_name"')
    found = sum(len(os.listdir(folder)) for folder in folders if folder.is_dir())
    images = " and ".join(map(str, folders))
    hole = f"{json_file.name} lists {listed:,} images, {images} holds {found:,}"
    cure = "download the images again and unpack all of them"
    return judge(name, listed, hole if found < listed else "", cure)


def check_voc(name: str, root: Path) -> Finding | None:
    """The list of the split, with an image and an annotation for each of its lines."""
    folder, split = root / BUILTIN_VOC[name][0], BUILTIN_VOC[name][1]
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not listing.is_file():
        return None
    lines = read_text(listing, "split file").splitlines()
    ids = [line.split()[0] for line in lines if line.strip()]
    images, boxes = (
        {file.stem for file in (folder / part).glob("*")} for part in ("JPEGImages", "Annotations")
    )
    alone = [one for one in ids if one not in images or one not in boxes]
    cure = "unpack the archive of this year again"
    return judge(name, len(ids), lacking(alone, len(ids), "JPEG or their XML"), cure)


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
    hole = lacking(sorted(images ^ outlines), len(images | outlines), "PNG or their outlines")
    cure = "unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip again"
    return judge(name, len(images), hole, cure)


def lacking(alone: list[str], total: int, what: str) -> str:
    """What is said of images without one of their files; nothing where there are none."""
    shown = f"{len(alone):,} of {total:,} images lack their {what}"
    return f"{shown}, {alone[0]} first" if alone else ""


def judge(name: str, number: int, hole: str, cure: str) -> Finding:
    """A fault for a hole, or where the maker counts other than is listed; else OK."""
    expected = EXPECTED.get(name.removeprefix("keypoints_"), number)
    if not hole and number != expected:
        hole = f"{number:,} images, its maker counts {expected:,}"
        cure = "results of it are comparable with nothing published: fetch the whole split"
    if hole:
        return Finding(FAULT, f"{name}: {hole}", cure)
    return Finding(OK, f"{name}: {number:,} images")


def count_text(path: Path, text: bytes) -> int:
    """How often a text occurs in a file; COCO's annotations are half a gigabyte."""
    if not path.stat().st_size:
        return 0
    with (
        open_regular(path) as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return sum(1 for _ in re.finditer(re.escape(text), content))


def check_disk(output: Path | None = None, shared: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Room for the checkpoints of a run, and for the batches that loading processes hand over."""
    folder = (output or Path.cwd()).absolute()
    free = shutil.disk_usage(folder).free / 1e9
    if free < ROOM_GB:
        what = f"{free:.1f} GB free at {folder}; the checkpoints of a 2x run take about 13"
        cure = "set OUTPUT_DIR to another disk, or SOLVER.CHECKPOINT_PERIOD higher"
        yield Finding(FAULT, what, cure)
    else:
        yield Finding(OK, f"{free:,.0f} GB free at {folder}")
    room = shutil.disk_usage(shared).total / 1e9 if shared.is_dir() else SHARED_MEMORY_GB
    if room < SHARED_MEMORY_GB:
        what = f"{shared} has {room:.2f} GB: loading processes hand batches over through it"
        yield Finding(FAULT, what, "docker run --shm-size 8g, or DATALOADER.NUM_WORKERS 0")
