"""Truth that COCO files hold and should not: scored as pycocotools does where that has a number."""

from __future__ import annotations

import contextlib
import copy
import io
import math
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

from moco_det.data import read_coco
from moco_det.scoring import score_coco
from tests.data.builders import write_coco
from tests.scoring.test_coco import NAMES, direct

CORNERS = [(2.0, 3.0), (20.0, 5.0), (40.0, 40.0), (60.0, 3.0), (5.0, 60.0), (70.0, 70.0)]


def content_with(change: dict[str, Any]) -> dict[str, Any]:
    """Six objects in two images; the first of them changed."""
    annotations: list[dict[str, Any]] = []
    for number, (x, y) in enumerate(CORNERS, start=1):
        outline = [x, y, x + 10, y, x + 10, y + 8, x, y + 8]
        annotations.append(
            {
                "id": number,
                "image_id": 1 + number % 2,
                "category_id": 1,
                "bbox": [x, y, 10.0, 8.0],
                "area": 80.0,
                "iscrowd": 0,
                "segmentation": [outline],
            }
        )
    annotations[0] |= change
    images = [{"id": i, "file_name": f"{i}.png", "height": 90, "width": 90} for i in (1, 2)]
    categories = [{"id": 1, "name": "cell"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def perfect_rows(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Every box and mask of unspoilt truth, as found."""
    truth = by_coco(content_with({}))
    return [
        {
            **{key: item[key] for key in ("image_id", "category_id", "bbox")},
            "score": 1 - 0.1 * item["id"],
            "segmentation": {
                "size": [90, 90],
                "counts": truth.annToRLE(truth.anns[item["id"]])["counts"].decode(),
            },
        }
        for item in content["annotations"]
    ]


def by_coco(content: dict[str, Any]) -> COCO:
    truth = COCO()
    truth.dataset = copy.deepcopy(content)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


@pytest.mark.parametrize("nothing", [[[]], [[1, 1, 2, 2]], [[1, 1, 2, 2, 3]], [], None])
def test_perfect_boxes_score_100_whatever_the_polygons_are(tmp_path: Path, nothing: Any) -> None:
    content = content_with({"segmentation": nothing})
    dataset, rows = read_coco(*write_coco(tmp_path, content)), perfect_rows(content)
    found = score_coco(dataset, rows, iou_types=["bbox"])["bbox"]
    assert found["AP"] == pytest.approx(100)
    theirs = [100 * v if v >= 0 else None for v in direct(by_coco(content), rows, "bbox")]
    assert [found[name] for name in NAMES] == pytest.approx(theirs, abs=1e-10)


def test_an_object_without_a_polygon_is_neither_asked_for_nor_a_mistake_among_masks(
    tmp_path: Path,
) -> None:
    content = content_with({"segmentation": [[1, 1, 2, 2]]})
    dataset, rows = read_coco(*write_coco(tmp_path, content)), perfect_rows(content)
    assert dataset.has_masks and dataset.objects == 6
    for some in (rows, rows[1:]):
        assert score_coco(dataset, some, iou_types=["segm"])["segm"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("area", [math.nan, -80.0, math.inf, 1e15])
def test_an_area_that_is_no_number_hides_no_object(tmp_path: Path, area: float) -> None:
    content = content_with({"area": area})
    for annotation in content["annotations"]:
        annotation["area"] = area
    dataset, rows = read_coco(*write_coco(tmp_path, content)), perfect_rows(content)
    whole = by_coco(content_with({}))
    for kind in ("bbox", "segm"):
        found = score_coco(dataset, rows, iou_types=[kind])[kind]  # type: ignore[list-item]
        theirs = [100 * v if v >= 0 else None for v in direct(whole, rows, kind)]
        assert theirs[0] == pytest.approx(100)
        assert [found[name] for name in NAMES] == pytest.approx(theirs, abs=1e-10)
