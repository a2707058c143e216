"""The training and the test set of a config, held against each other and against the config."""

from __future__ import annotations

import pytest

from moco_det.data import DetectionDataset, Record
from moco_det.data.pair import check_classes_of_config, overlap_warnings
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
