"""Which detections are right, and which images are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from moco_det.data import DetectionDataset, Record
from moco_det.foundation.errors import InputError
from moco_det.report.detections import (
    Box,
    above,
    best_threshold,
    choose_images,
    disagreement,
    match,
    outlines,
    read_boxes,
)


def box(x: float, category: str = "cat", score: float | None = 0.9, **changes: bool) -> Box:
    return Box((x, 0.0, x + 10, 10.0), category, score, **changes)


@pytest.mark.parametrize(("shift", "same"), [(3.3, True), (3.4, False), (20.0, False)])
def test_a_box_is_found_from_an_iou_of_a_half_on(shift: float, same: bool) -> None:
    """(10 - x) / (10 + x) is a half at x = 3.33."""
    assert match([box(shift)], [box(0)]).right == (same,)
    assert match([], [box(0)]).missed == 1 and match([box(0)], []).wrong == (True,)


def test_a_second_detection_of_one_object_is_wrong() -> None:
    outcome = match([box(0), box(1)], [box(0, score=None), box(50, score=None)])
    assert outcome.right == (True, False)
    assert outcome.wrong == (False, True)
    assert outcome.missed == 1


def test_another_class_is_wrong_and_an_ignored_object_is_neither() -> None:
    truth = [box(0, "dog", None), box(50, "cat", None, ignored=True)]
    outcome = match([box(0, "cat"), box(50, "cat")], truth)
    assert outcome.right == (False, False)
    assert outcome.wrong == (True, False)
    assert outcome.missed == 1


def test_disagreement_counts_what_only_one_of_a_pair_has() -> None:
    assert disagreement([[box(0)], [box(0)]]) == 0
    assert disagreement([[box(0)], [box(0), box(50)]]) == 1
    assert disagreement([[box(0)], [box(0, "dog")], []]) == 2 + 1 + 1


def test_images_are_chosen_at_random_with_a_fixed_seed_then_by_disagreement() -> None:
    ids = [f"i{n:02d}" for n in range(20)]
    arms = [{"i03": [box(0), box(50)], "i07": [box(0)]}, {}]
    chosen = choose_images(ids, arms, largest=2, at_random=3)
    assert [name for name, _ in chosen[3:]] == ["i03", "i07"]
    assert "rank 1 (2 unshared" in chosen[3][1]
    assert {why for _, why in chosen[:3]} == {"drawn at random"}
    assert len({name for name, _ in chosen}) == 5
    assert chosen == choose_images(ids[::-1], arms, largest=2, at_random=3)


def test_agreement_everywhere_is_not_called_a_disagreement() -> None:
    chosen = choose_images(["a", "b"], [{}, {}], largest=3, at_random=3)
    assert {why for _, why in chosen} == {"drawn at random"}


@pytest.fixture
def one_image() -> DetectionDataset:
    return DetectionDataset(
        name="toy",
        uri="coco://toy.json",
        classes=("cat",),
        category_ids=(3,),
        records=(Record(file_name="7.png", image_id=7, height=5, width=4, annotations=()),),
        layout="coco",
    )


ENTRY = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.6}


def test_predictions_are_named_and_sorted_by_score(
    tmp_path: Path, one_image: DetectionDataset
) -> None:
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps([{**ENTRY, "score": 0.4}, ENTRY, {**ENTRY, "score": 0.8}]))
    found = read_boxes(path, one_image)
    assert [b.score for b in found["7"]] == [0.8, 0.6, 0.4]
    assert found["7"][0].xyxy == (1, 2, 4, 6)
    assert found["7"][0].category == "cat"
    assert [b.score for b in above(found, 0.6)["7"]] == [0.8, 0.6]


def test_an_arm_is_shown_from_the_score_of_its_best_f1() -> None:
    """Three objects; F1 down to each score: 2/4, 4/5, 6/7 and 6/8."""
    truth = {"a": [box(0), box(50)], "b": [box(0)], "c": [box(0, ignored=True)]}
    found = {
        "a": [box(0, score=0.9), box(50, score=0.2), box(20, score=0.2), box(80, score=0.1)],
        "b": [box(0, score=0.4)],
        "c": [box(0, score=0.3)],  # of an ignored object: it counts nowhere
    }
    assert best_threshold(found, truth) == 0.2
    # All of a score are shown or none: 6/10 with these, 6/6 with the first of them alone.
    found["a"][2:3] = [box(20, score=0.2)] * 4
    assert best_threshold(found, truth) == 0.4


def test_an_arm_that_finds_nothing_is_shown_from_a_half() -> None:
    assert best_threshold({"a": [box(80, score=0.9)]}, {"a": [box(0)]}) == 0.5
    assert best_threshold({}, {"a": [box(0)]}) == 0.5


@pytest.mark.parametrize("text", ["", "{}x", "[1]", '[{"score": 1}]', "null"])
def test_predictions_that_cannot_be_read_are_input_errors(
    tmp_path: Path, one_image: DetectionDataset, text: str
) -> None:
    path = tmp_path / "predictions.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"predictions\.json"):
        read_boxes(path, one_image)
    with pytest.raises(InputError, match="gone"):
        read_boxes(tmp_path / "gone.json", one_image)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        # one run of 5 pixels in a mask of 20: pycocotools would draw what nobody has written
        ({"segmentation": {"size": [5, 4], "counts": "5"}}, "a damaged mask"),
        ({"image_id": 8}, "image_id 8, which toy does not have"),
        ({"category_id": 4}, "category_id 4, which toy does not have"),
    ],
)
def test_damaged_masks_and_predictions_of_other_data_are_refused_as_by_scoring(
    tmp_path: Path, one_image: DetectionDataset, change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps([{**ENTRY, **change}]))
    with pytest.raises(InputError, match=said):
        read_boxes(path, one_image)


def test_a_mask_has_its_outline_and_its_hole() -> None:
    mask = np.zeros((40, 60), dtype=np.uint8, order="F")
    mask[10:30, 10:50] = 1
    mask[15:25, 20:40] = 0
    rle = coco_mask.encode(mask)
    rle["counts"] = rle["counts"].decode()
    shapes = outlines(rle, 0.5)
    assert len(shapes) == 2
    outer = max(shapes, key=lambda s: np.ptp(s[:, 0]))
    assert outer.min(axis=0).tolist() == pytest.approx([10.5, 10.5])
    assert outer.max(axis=0).tolist() == pytest.approx([49.5, 29.5])


def test_a_polygon_is_its_own_outline_and_no_mask_has_none() -> None:
    assert len(outlines([[0, 0, 10, 0, 10, 10]], 0.1)) == 1
    assert outlines(None, 0.1) == outlines([], 0.1) == []
