"""Data that detectron2 reads itself, for TEST.EVALUATOR detectron2: keypoints, LVIS, Cityscapes.

Images and objects go from detectron2's reader to detectron2's trainer and scorer; what is made
here is only their description, so that a result row says what was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode

from moco_det.data import (
    Annotation,
    DetectionDataset,
    Record,
    check_images,
    concatenate,
    load_dataset,
)
from moco_det.data.catalog_names import parse_uri
from moco_det.data.check import CHECK_LIMIT, check_classes_of_config
from moco_det.foundation.errors import InputError
from moco_det.plugin.d2_compat import find_cityscapes
from moco_det.plugin.datasets import put

# Names, flip pairs and drawing rules of COCO's 17 keypoints of a person.
KEYPOINTS_OF = "keypoints_coco_2017_val"
POINTS = ("keypoint_names", "keypoint_flip_map", "keypoint_connection_rules")


def load_catalog_data(
    *, train: Sequence[str], test: Sequence[str], num_classes: int, keypoints: bool, progress: bool
) -> tuple[DetectionDataset, DetectionDataset]:
    """The descriptions of a config's data sets, which are detectron2's names or coco://... names.

    Raises InputError for a name, a file or an image that is not there.
    """
    if len(test) != 1:
        raise InputError(
            f"DATASETS.TEST names {len(test)} data sets: TEST.EVALUATOR detectron2 scores one"
        )
    train_set = concatenate(read(name, keypoints=keypoints) for name in train)
    test_set = read(test[0], keypoints=keypoints)
    if train_set.classes != test_set.classes:
        raise InputError(
            f"{train_set.name} and {test_set.name} have different classes: detectron2 numbers "
            "them by their ids in each file, so both must list the same"
        )
    check_classes_of_config(num_classes, train_set)
    for part in (train_set, test_set):
        if len(part) <= CHECK_LIMIT:
            check_images(part, strict=True, progress=progress)  # detectron2 skips none
    return train_set, test_set


def read(name: str, *, keypoints: bool) -> DetectionDataset:
    """One data set by its name in detectron2's catalog, after it was put there if it is a URI."""
    if "://" in name:
        return register_coco(name, keypoints=keypoints)
    if name not in DatasetCatalog:
        raise InputError(
            f"data set {name!r} is not in detectron2's catalog; it has names like "
            "coco_2017_train, keypoints_coco_2017_train, lvis_v0.5_train, "
            "cityscapes_fine_instance_seg_train; your own is coco://FILE.json?images=DIR"
        )
    if name.startswith("cityscapes_"):
        find_cityscapes()
    try:
        rows = DatasetCatalog.get(name)
    except ImportError as error:
        needed = (error.name or "").partition(".")[0]
        way = f"pip install {needed}" if needed else str(error)
        raise InputError(f"data set {name} needs a package for its files: {way}") from error
    except (OSError, AssertionError, KeyError, ValueError) as error:
        raise InputError(
            f"data set {name} cannot be read ({type(error).__name__}: {error}): detectron2 looks "
            "below the folder that DETECTRON2_DATASETS named when it was started (./datasets)"
        ) from error
    return describe(name, rows)


def register_coco(name: str, *, keypoints: bool) -> DetectionDataset:
    """Put a coco://FILE.json?images=DIR into detectron2's catalog, read by detectron2."""
    scheme, path, options = parse_uri(name)
    if scheme != "coco":
        raise InputError(f"data set {name}: TEST.EVALUATOR detectron2 takes coco://, not {scheme}")
    dataset = load_dataset(name)  # finds what is wrong with the file, and says so in one line
    kept = {record.image_id for record in dataset.records}
    person = MetadataCatalog.get(KEYPOINTS_OF)
    points = {key: person.get(key) for key in POINTS} if keypoints else {}
    put(
        name,
        lambda: [
            row for row in load_coco_json(path, options["images"], name) if row["image_id"] in kept
        ],
        json_file=path,
        image_root=options["images"],
        evaluator_type="coco",
        **points,
    )
    try:
        DatasetCatalog.get(name)  # also fills in the classes
    except (AssertionError, KeyError, ValueError) as error:
        raise InputError(
            f"data set {name}: detectron2 does not read {path} ({type(error).__name__}: {error}): "
            "set TEST.EVALUATOR moco_det, which does, or mend the file"
        ) from error
    return dataset


def describe(name: str, rows: Sequence[dict[str, Any]]) -> DetectionDataset:
    """Dictionaries of detectron2's standard form as records of ours."""
    metadata = MetadataCatalog.get(name)
    classes = tuple(metadata.thing_classes)
    known = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    own = {index: number for number, index in known.items()}
    return DetectionDataset(
        name=name,
        uri=name,
        records=tuple(to_record(row) for row in rows),
        classes=classes,
        category_ids=tuple(own.get(index, index) for index in range(len(classes))),
        has_masks=any("segmentation" in a for row in rows for a in row.get("annotations", ())),
    )


def to_record(row: dict[str, Any]) -> Record:
    """One image with its objects; keypoints are no part of it."""
    annotations = []
    for number, a in enumerate(row.get("annotations", ()), start=1):
        x0, y0, x1, y1 = map(float, BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS))
        annotations.append(
            Annotation(
                bbox=(x0, y0, x1, y1),
                category=a["category_id"],
                iscrowd=bool(a.get("iscrowd", 0)),
                segmentation=a.get("segmentation"),
                id=number,
            )
        )
    image_id = row.get("image_id", row["file_name"])
    return Record(image_id, row["file_name"], row["height"], row["width"], tuple(annotations))
