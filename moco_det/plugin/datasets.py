"""Data sets of our readers under their names in detectron2's catalogs.

A config names its data by URI (voc://DIR?split=..., coco://FILE?images=DIR) or by one of
detectron2's names; both are read by `moco_det.data`, so that both engines see the same objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from moco_det.data import Annotation, DetectionDataset, load_dataset
from moco_det.data.catalog_names import BUILTIN_COCO, BUILTIN_VOC
from moco_det.data.check import check_trainable, load_pair
from moco_det.foundation.errors import InputError


def register_dataset(name: str, classes: Sequence[str] | None = None) -> DetectionDataset:
    """Read a data set by its name and register it under that name; for your own program.

    Register a test set with the classes of its training set.
    """
    dataset = load_dataset(name, classes)
    register(name, dataset)
    return dataset


def register(name: str, dataset: DetectionDataset) -> None:
    """Make a data set known to detectron2 under this name."""
    put(
        name,
        lambda: to_dicts(dataset),
        thing_classes=list(dataset.classes),
        thing_dataset_id_to_contiguous_id={
            own: index for index, own in enumerate(dataset.category_ids)
        },
        evaluator_type="moco_det",
    )


def put(name: str, rows: Callable[[], list[dict[str, Any]]], **metadata: Any) -> None:
    """Put a data set into detectron2's catalogs, in place of what had the name before."""
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, rows)
    MetadataCatalog.get(name).set(**metadata)


def to_dicts(dataset: DetectionDataset) -> list[dict[str, Any]]:
    """A data set in detectron2's standard form."""
    return [
        {**vars(record), "annotations": [to_object(a) for a in record.annotations]}
        for record in dataset.records
    ]


def to_object(annotation: Annotation) -> dict[str, Any]:
    found: dict[str, Any] = {
        "bbox": list(annotation.bbox),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": annotation.category,
        "iscrowd": int(annotation.iscrowd),
    }
    if annotation.segmentation is not None:
        found["segmentation"] = annotation.segmentation
    return found


def joined(names: Sequence[str]) -> str:
    """The one name under which several data sets of a config are registered as one."""
    return " + ".join(names)


def load_data(
    *,
    train: Sequence[str],
    test: Sequence[str],
    num_classes: int,
    with_masks: bool,
    skip_empty: bool,
    strict: bool,
    progress: bool,
) -> tuple[DetectionDataset, DetectionDataset]:
    """The training and test sets of a config, checked against each other and the config.

    Several data sets become one, which is trained on and scored as one. Both are registered under
    their `joined` names.
    """
    for name in (*train, *test):
        ours = "://" in name or name in BUILTIN_COCO or name in BUILTIN_VOC
        if not ours and name in DatasetCatalog:
            raise InputError(
                f"data set {name} is one that detectron2 alone reads and scores: set "
                "TEST.EVALUATOR detectron2"
            )
    train_set, test_set = load_pair(
        train=train,
        test=test,
        num_classes=num_classes,
        with_masks=with_masks,
        strict=strict,
        progress=progress,
    )
    check_trainable(train_set, skip_empty=skip_empty)
    register(joined(train), train_set)
    register(joined(test), test_set)
    return train_set, test_set
