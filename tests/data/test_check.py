"""The training and the test set of a config, held against each other and against the config."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moco_det.data import Annotation, DetectionDataset, Record
from moco_det.data.check import (
    check_classes_of_config,
    check_trainable,
    choose_mask_format,
    choose_masks,
    overlap_warnings,
)
from moco_det.foundation.errors import InputError


def dataset(*classes: str) -> DetectionDataset:
    return DetectionDataset("set", "voc://set", (), classes, tuple(range(len(classes))))


def test_the_number_of_classes_must_be_the_datas() -> None:
    check_classes_of_config(2, dataset("cat", "dog"))
    with pytest.raises(InputError, match=r"NUM_CLASSES is 80, but set has 2 .*cat, dog.* to 2"):
        check_classes_of_config(80, dataset("cat", "dog"))
    with pytest.raises(InputError, match=r"c7, \.\.\.\)"):
        check_classes_of_config(1, dataset(*(f"c{i}" for i in range(12))))


def test_images_that_are_trained_and_tested_on_are_named() -> None:
    def images(*names: str) -> DetectionDataset:
        return DetectionDataset(
            "set", "voc://set", tuple(Record(n, f"/{n}.jpg", 4, 4) for n in names), ("a",), (1,)
        )

    assert overlap_warnings(images("a", "b"), images("c")) == []
    assert overlap_warnings(images("a", "b"), images("b", "c")) == [
        "1 of 2 test images are training images too"
    ]


RLE = {"size": [4, 6], "counts": "9220003"}
POLYGON = Annotation((1.0, 2.0, 3.0, 4.0), 1, segmentation=[[1.0, 2.0, 3.0, 2.0, 3.0, 4.0]])
CROWD = Annotation((0.0, 0.0, 6.0, 4.0), 0, iscrowd=True, segmentation=RLE)


def dataset_of(*objects: Annotation) -> DetectionDataset:
    records = (Record(1, "/img/a7.jpg", 4, 6, objects), Record(2, "/img/9.jpg", 4, 6))
    return DetectionDataset("two", "two", records, ("cat", "dog"), (3, 11))


def test_run_length_masks_are_trained_as_bitmaps_and_crowds_do_not_count() -> None:
    coded = dataset_of(POLYGON, replace(CROWD, iscrowd=False, id=12))
    said = "INPUT.MASK_FORMAT is taken as bitmask: 1 of 2 masks of two are run-lengths"
    assert choose_mask_format(coded, "polygon") == ("bitmask", [said])
    for asked in ("polygon", "bitmask"):
        assert choose_mask_format(dataset_of(POLYGON, CROWD), asked) == (asked, [])


def test_masks_are_on_where_both_splits_have_them() -> None:
    whole = replace(dataset_of(POLYGON, CROWD), has_masks=True)
    coded = replace(dataset_of(POLYGON, replace(CROWD, iscrowd=False)), has_masks=True)
    boxes = replace(dataset_of(replace(POLYGON, segmentation=None)), name="boxes")
    assert choose_masks(whole, coded)[0] == "polygon" and choose_masks(coded, whole)[0] == "bitmask"
    for pair in ((whole, boxes), (boxes, whole)):
        found, said = choose_masks(*pair)
        assert not found and said == "boxes alone: 0 of 1 objects of boxes have a mask"


def test_nothing_to_train_on_is_an_error_that_speaks_of_crowds_where_there_are_no_others() -> None:
    check_trainable(dataset_of(), skip_empty=False)
    with pytest.raises(InputError, match="all 1 objects of two are crowd regions"):
        check_trainable(dataset_of(CROWD), skip_empty=False)
    with pytest.raises(InputError, match="no image with an object"):
        check_trainable(dataset_of(), skip_empty=True)
    with pytest.raises(InputError, match="no image with an object"):
        check_trainable(replace(dataset_of(), records=()), skip_empty=False)
