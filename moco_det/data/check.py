"""Checking data before hours of training depend on it: every image opened, a config's two sets."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from tqdm import tqdm

from moco_det.data.catalog import load_datasets
from moco_det.data.image import image_fault
from moco_det.data.records import DetectionDataset, Record
from moco_det.foundation.errors import InputError

Item = TypeVar("Item")

logger = logging.getLogger(__name__)

# More broken images than this share are a broken data set, not an accident.
TOLERATED_SHARE = 0.1
# Up to this many images every one is opened before training; above, that would take too long.
CHECK_LIMIT = 5000


def check_images(
    dataset: DetectionDataset, strict: bool = False, progress: bool = True
) -> DetectionDataset:
    """The data set without the images that do not decode or differ in size from their annotation.

    They are counted in `skipped` and in one warning, the first by name. Raises InputError on the
    first under `strict`, and always when more than 10 % are broken.
    """

    def look(record: Record) -> Record | str:
        return image_fault(record.file_name, record.height, record.width) or record

    bar = tqdm(
        total=len(dataset),
        desc=f"checking images of {dataset.name}",
        unit="img",
        mininterval=1,
        disable=not progress,
    )
    kept, faults = look_at_each(look, dataset.records, bar, strict=strict)
    if not faults:
        return dataset
    message = f"{len(faults)} of {len(dataset)} images skipped, first: {faults[0]}"
    if len(faults) > TOLERATED_SHARE * len(dataset):
        raise InputError(f"data set {dataset.name}: {message} (more than 10 % are broken)")
    logger.warning("data set %s: %s", dataset.name, message)
    return replace(dataset, records=tuple(kept), skipped=(*dataset.skipped, message))


def load_pair(
    *,
    train: Sequence[str],
    test: Sequence[str],
    num_classes: int,
    with_masks: bool,
    strict: bool,
    progress: bool,
) -> tuple[DetectionDataset, DetectionDataset]:
    """The training and test sets of a config, checked against each other and the config.

    Images that do not open are left out and counted, or under ``strict`` an InputError.
    """
    train_set = _load("TRAIN", train)
    test_set = _load("TEST", test, train_set.classes)
    check_classes_of_config(num_classes, train_set)
    pair = []
    for part in (train_set, test_set):
        check_crowds(part)
        if with_masks and not part.has_masks:
            raise InputError(f"MODEL.MASK_ON is True, but {part.name} has no masks: set it False")
        if len(part) <= CHECK_LIMIT:
            part = check_images(part, strict=strict, progress=progress)
        pair.append(part)
    return pair[0], pair[1]


def _load(
    part: str, names: Sequence[str], classes: Sequence[str] | None = None
) -> DetectionDataset:
    try:
        return load_datasets(names, classes)
    except InputError as error:
        raise InputError(f"DATASETS.{part}: {error}") from error


def check_trainable(dataset: DetectionDataset, *, skip_empty: bool) -> None:
    """InputError where nothing is left to train on.

    ``skip_empty`` leaves out images without objects.
    """
    check_crowds(dataset)
    if not dataset.records or (skip_empty and not dataset.objects):
        raise InputError(f"{dataset.name} has no image with an object to train on")


def check_crowds(dataset: DetectionDataset) -> None:
    """InputError where there are objects and all of them are crowds."""
    if dataset.objects and all(a.iscrowd for r in dataset.records for a in r.annotations):
        raise InputError(
            f"all {dataset.objects} objects of {dataset.name} are crowd regions (iscrowd 1), which "
            "are neither trained nor scored: write iscrowd 0 where a region is one object"
        )


def crowd_warning(dataset: DetectionDataset) -> list[str]:
    """A line on objects that are neither trained nor scored, where some but not all are crowds."""
    crowds = sum(a.iscrowd for r in dataset.records for a in r.annotations)
    if not crowds:
        return []
    return [
        f"{crowds} of {dataset.objects} objects are crowd regions (iscrowd 1), neither trained nor "
        "scored: write iscrowd 0 where a region is one object"
    ]


def choose_mask_format(dataset: DetectionDataset, asked: str) -> tuple[str, list[str]]:
    """INPUT.MASK_FORMAT as the masks to train on allow it, with a warning where not as asked.

    Polygons can be trained as bitmaps, run-lengths not as polygons.
    """
    masks = [a.segmentation for r in dataset.records for a in r.annotations if not a.iscrowd]
    coded = sum(isinstance(mask, dict) for mask in masks)
    if not coded or asked == "bitmask":
        return asked, []
    of = f"{coded} of {len(masks)} masks of {dataset.name} are run-lengths"
    return "bitmask", [f"INPUT.MASK_FORMAT is taken as bitmask: {of}"]


def choose_masks(train: DetectionDataset, test: DetectionDataset) -> tuple[str, str]:
    """The mask format that both splits allow, "" for boxes alone, and a line that says so."""
    for part in (train, test):
        if not part.has_masks:
            masks = [a.segmentation for r in part.records for a in r.annotations if not a.iscrowd]
            some = len(masks) - masks.count(None)
            return (
                "",
                f"boxes alone: {some} of {len(masks)} objects of {part.name} have a mask",
            )
    found, warnings = choose_mask_format(train, "polygon")
    return found, "; ".join([f"boxes and masks, as {found}s", *warnings])


def overlap_warnings(train: DetectionDataset, test: DetectionDataset) -> list[str]:
    """A line where images are both trained and tested on: their AP says nothing of transfer."""
    trained, tested = ({os.path.realpath(r.file_name) for r in s.records} for s in (train, test))
    shared = trained & tested
    if not shared:
        return []
    return [f"{len(shared)} of {len(test)} test images are training images too"]


def check_classes_of_config(num_classes: int, dataset: DetectionDataset) -> None:
    """InputError unless MODEL.ROI_HEADS.NUM_CLASSES is what the data has."""
    if num_classes != len(dataset.classes):
        names = ", ".join(dataset.classes[:8]) + (", ..." if len(dataset.classes) > 8 else "")
        raise InputError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}, but {dataset.name} has "
            f"{len(dataset.classes)} classes ({names}): set it to {len(dataset.classes)}"
        )


def look_at_each(
    look: Callable[[Item], Record | str], items: Collection[Item], bar: tqdm, *, strict: bool
) -> tuple[list[Record], list[str]]:
    """The records that ``look`` gives of images, and what it says of those that cannot be used.

    Under ``strict`` the first of these is an InputError.
    """
    records, faults = [], []
    # decoding holds no interpreter lock; two threads per core keep the disk busy too
    with ThreadPoolExecutor(max_workers=min(2 * (os.cpu_count() or 1), 16)) as pool, bar:
        for found in pool.map(look, items):
            bar.update()
            if isinstance(found, Record):
                records.append(found)
                continue
            faults.append(found)
            if strict:
                pool.shutdown(wait=False, cancel_futures=True)
                raise InputError(f"{found} (--strict)")
    return records, faults
