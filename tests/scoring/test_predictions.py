"""The predictions file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest

from moco_det.foundation.errors import InputError
from moco_det.scoring import (
    check_predictions,
    metric_lines,
    read_predictions,
    result_rows,
    write_predictions,
)
from tests.scoring.builders import dataset_of, row

DATASET = dataset_of({"a": [(0, (10, 10, 30, 30))], "b": []}, side=40)


def test_rows_carry_the_data_sets_own_ids_and_masks() -> None:
    mask = np.zeros((1, 40, 40), bool)
    mask[0, 5:9, 3:8] = True
    boxes = np.array([[3, 5, 8, 9]], np.float32)
    rows = result_rows(DATASET, "a", boxes, np.array([0.5], np.float32), np.array([1]), mask)
    assert rows[0]["category_id"] == 7 and rows[0]["bbox"] == [3.0, 5.0, 5.0, 4.0]
    assert np.array_equal(pycocotools.mask.decode(rows[0]["segmentation"]), mask[0])
    json.dumps(rows)
    assert result_rows(DATASET, "a", np.zeros((0, 4)), [], []) == []


def test_written_rows_are_read_back_exactly(tmp_path: Path) -> None:
    first = row("a", 3, (0.1, 1 / 3, 9.7, 8.0), 0.123456789012345)
    second = {**row("b", 7, (1, 2, 3, 4), 1), "segmentation": {"size": [40, 40], "counts": b"Pb1"}}
    path = tmp_path / "deep" / "predictions.json"
    write_predictions(path, [first, second])
    rows = read_predictions(path, DATASET)
    assert rows[0] == first
    assert rows[1]["segmentation"] == {"size": [40, 40], "counts": "Pb1"}
    write_predictions(path, [])
    assert read_predictions(path, DATASET) == []
    assert [p.name for p in path.parent.iterdir()] == ["predictions.json"]


def test_array_scalars_are_written_as_plain_numbers(tmp_path: Path) -> None:
    found = {
        "image_id": np.int64(5),
        "category_id": np.int32(3),
        "bbox": np.array([1, 2, 3, 4], np.float32),
        "score": np.float32(0.5),
    }
    write_predictions(tmp_path / "p.json", [found])
    assert json.loads((tmp_path / "p.json").read_text()) == [
        {"image_id": 5, "category_id": 3, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}
    ]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    write_predictions(path, [row("a", 3, (0, 0, 9, 9), 0.5)])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_predictions(path, [row("a", 3, (0, 0, 9, 9), float("nan"))])
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": "z"}, "row 0 has image_id 'z', which made does not have"),
        ({"image_id": None}, "row 0 has image_id None"),
        ({"category_id": 4}, r"category_id 4, which made does not have \(it has 3, 7\)"),
        ({"category_id": "cat"}, "category_id 'cat'"),
        ({"bbox": [1, 2, 3]}, "not four numbers within 1e9"),
        ({"bbox": [1, 2, 3, float("inf")]}, "not four numbers within 1e9"),
        ({"bbox": [1, 2, 3, 10**400]}, "not four numbers within 1e9"),
        ({"bbox": ["1", "2", "3", "4"]}, "not four numbers within 1e9"),
        ({"score": None}, "score None, not a finite number"),
        ({"score": "0.5"}, "score '0.5', not a finite number"),
        ({"score": True}, "score True, not a finite number"),
        ({"segmentation": {"counts": "n"}}, "not a compressed RLE"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6]]}, "not a compressed RLE"),
        ({"segmentation": {"size": [3, 4], "counts": "n"}}, r"mask of size \[3, 4\] for image"),
        ({"segmentation": {"size": [40, 40], "counts": "n"}}, "damaged mask, its runs do not fill"),
    ],
)
def test_a_bad_row_is_named(change, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_predictions([{**row("a", 3, (1, 1, 9, 9), 0.5), **change}], DATASET)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "no list of COCO result rows"), ("[1]", "row 0 has no fields"), ("[{", "is not json")],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(InputError, match=f"p.json.*{message}"):
        read_predictions(tmp_path / "p.json", DATASET)
    with pytest.raises(InputError, match="none.json does not exist"):
        read_predictions(tmp_path / "none.json", DATASET)


def test_the_lines_of_metrics_show_numbers_and_a_dash_where_there_is_none() -> None:
    metrics = {"bbox": {"AP": 12.25, "APl": None, "per_class": {"cat": 1.0}, "metric": "area"}}
    assert metric_lines(metrics) == ["bbox: AP 12.25  APl -"]
