"""Data sets of our readers under their names in detectron2's catalogs.

A config names its data by URI (voc://DIR?split=..., coco://FILE?images=DIR) or by one of
detectron2's names; both are read by `moco_det.data`, so that both engines see the same objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from moco_det.data import DetectionDataset, load_dataset
from moco_det.data.catalog_names import BUILTIN_COCO, BUILTIN_VOC
from moco_det.data.pair import load_pair
from moco_det.foundation.errors import InputError


def register_dataset(name: str, classes: Sequence[str] | None = None) -> DetectionDataset:
    """Read a data set by its name and register it under that name; for anybody's program.

    Register a test set with the classes of its training set.
    """
    dataset = load_dataset(name, classes)
    register(name, dataset)
    return dataset


def register(name: str, dataset: DetectionDataset) -> None:
    """Put a data set into detectron2's catalogs, in place of what had the name before."""
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: to_dicts(dataset))
    MetadataCatalog.get(name).set(
        thing_classes=list(dataset.classes),
        thing_dataset_id_to_contiguous_id={
            own: index for index, own in enumerate(dataset.category_ids)
        },
        evaluator_type="moco_det",
    )


def to_dicts(dataset: DetectionDataset) -> list[dict[str, Any]]:
    """A data set in detectron2's standard form."""
    rows = []
    for record in dataset.records:
        objects = []
        for annotation in record.annotations:
            one: dict[str, Any] = {
                "bbox": list(annotation.bbox),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": annotation.category,
                "iscrowd": int(annotation.iscrowd),
            }
            if annotation.segmentation is not None:
                one["segmentation"] = annotation.segmentation
            objects.append(one)
        rows.append(
            {
                "file_name": record.file_name,
                "image_id": record.image_id,
                "height": record.height,
                "width": record.width,
                "annotations": objects,
            }
        )
    return rows


def joined(names: Sequence[str]) -> str:
    """The one name under which several data sets of a config are registered as one."""
    return " + ".join(names)


def load_data(
    *,
    train: Sequence[str],
    test: Sequence[str],
    num_classes: int,
    mask_format: str | None,
    skip_empty: bool,
    strict: bool,
    progress: bool,
) -> tuple[DetectionDataset, DetectionDataset]:
    """The training and test sets of a config, checked against each other and the config.

    ``mask_format`` is None where no masks are trained. Several data sets become one, which is
    trained on and scored as one. Both are registered under their `joined` names.
    """
    for name in (*train, *test):
        if "://" not in name and name not in (*BUILTIN_COCO, *BUILTIN_VOC):
            refuse_theirs(name)
    train_set, test_set = load_pair(
        train=train,
        test=test,
        num_classes=num_classes,
        with_masks=mask_format is not None,
        strict=strict,
        progress=progress,
    )
    if mask_format is not None:
        check_masks(train_set, mask_format)
    check_not_empty(train_set, skip_empty=skip_empty)
    register(joined(train), train_set)
    register(joined(test), test_set)
    return train_set, test_set


def refuse_theirs(name: str) -> None:
    """InputError for a name that detectron2's catalog has and moco_det has no reader for."""
    if name in DatasetCatalog:
        raise InputError(
            f"data set {name} is one that detectron2 alone reads and scores: set TEST.EVALUATOR "
            "detectron2"
        )


def check_masks(dataset: DetectionDataset, mask_format: str) -> None:
    """InputError where an object has no mask, or one that detectron2 cannot take in this form."""
    for record in dataset.records:
        for annotation in record.annotations:
            if annotation.iscrowd:
                continue
            if annotation.segmentation is None:
                raise InputError(
                    f"object {annotation.id} of {record.file_name} has no segmentation: "
                    "set MODEL.MASK_ON False or annotate masks"
                )
            if mask_format == "polygon" and isinstance(annotation.segmentation, dict):
                raise InputError(
                    f"object {annotation.id} of {record.file_name} has a run-length mask: "
                    "set INPUT.MASK_FORMAT bitmask"
                )


def check_not_empty(dataset: DetectionDataset, *, skip_empty: bool) -> None:
    """InputError where nothing is left to train on."""
    objects = any(not a.iscrowd for record in dataset.records for a in record.annotations)
    if not dataset.records or (skip_empty and not objects):
        raise InputError(f"{dataset.name} has no image with an object to train on")
