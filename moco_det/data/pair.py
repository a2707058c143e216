"""The training and the test set of a config, checked against each other and against the config."""

from __future__ import annotations

from collections.abc import Sequence

from moco_det.data.catalog import load_datasets
from moco_det.data.check import check_images
from moco_det.data.records import DetectionDataset
from moco_det.foundation.errors import InputError

# Up to this many images every one is opened before training; above, that would take too long.
CHECK_LIMIT = 5000


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
    train_set = load_datasets(train)
    test_set = load_datasets(test, classes=train_set.classes)
    check_classes_of_config(num_classes, train_set)
    pair = []
    for part in (train_set, test_set):
        if with_masks and not part.has_masks:
            raise InputError(f"MODEL.MASK_ON is True, but {part.name} has no masks: set it False")
        if len(part) <= CHECK_LIMIT:
            part = check_images(part, strict=strict, progress=progress)
        pair.append(part)
    return pair[0], pair[1]


def check_trainable(
    dataset: DetectionDataset, *, mask_format: str | None, skip_empty: bool
) -> None:
    """InputError where nothing is left to train on, or a mask does not come in this format.

    ``mask_format`` is polygon or bitmask, or None where no masks are trained; ``skip_empty`` leaves
    out images without objects.
    """
    objects = [(r, a) for r in dataset.records for a in r.annotations if not a.iscrowd]
    if not dataset.records or (skip_empty and not objects):
        raise InputError(f"{dataset.name} has no image with an object to train on")
    for record, annotation in objects:
        if mask_format == "polygon" and isinstance(annotation.segmentation, dict):
            raise InputError(
                f"object {annotation.id} of {record.file_name} has a run-length mask: "
                "set INPUT.MASK_FORMAT bitmask"
            )


def overlap_warnings(train: DetectionDataset, test: DetectionDataset) -> list[str]:
    """A line where images are both trained and tested on: their AP says nothing of transfer."""
    shared = {r.file_name for r in train.records} & {r.file_name for r in test.records}
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
