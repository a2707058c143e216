"""Pictures on the page: the truth first, every arm on the same image, and why there are none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from moco_det.data import load_dataset

from .parsed_page import page_of


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, str]:
    """Four noisy images in COCO layout with an object each; (json, address)."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(4):
        pixels = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), pixels)
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": 60, "width": 80})
        annotations.append(
            {"id": i + 1, "image_id": i + 1, "category_id": 5, "bbox": [10, 10, 30, 30],
             "area": 900, "iscrowd": 0,
             "segmentation": [[10, 10, 40, 10, 40, 40, 10, 40]]}
        )  # fmt: skip
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 5, "name": "<cat>"}],
    }
    path = tmp_path / "test.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path, f"coco://{path}?images={folder}"


def picture_rows(make_row: Any, address: str, tmp_path: Path) -> list[dict[str, Any]]:
    fingerprint = load_dataset(address).fingerprint
    rows = []
    for arm, x in (("random", 45), ("moco", 10)):
        row = make_row(arm, classes=["<cat>"])
        row["config"] = row["config"].replace("toy_test", json.dumps(address))
        row["dataset"]["test_fingerprint"] = fingerprint
        run = tmp_path / row["output_dir"]
        run.mkdir(parents=True)
        entries = [{"image_id": 2, "category_id": 5, "bbox": [x, 10, 30, 30], "score": 0.75}]
        (run / "predictions.json").write_text(json.dumps(entries), encoding="utf-8")
        rows.append(row)
    return rows


def test_pictures_show_the_truth_first_and_every_arm_on_the_same_image(
    tmp_path: Path, make_row: Any, write_rows: Any, pictures: tuple[Path, str]
) -> None:
    rows = picture_rows(make_row, pictures[1], tmp_path)
    page, _ = page_of(write_rows(rows), tmp_path / "out")
    images = [a for tag, a in page.tags if tag == "image"]
    assert len(images) == 4
    assert all(str(a["href"]).startswith("data:image/jpeg;base64,") for a in images)
    uses = [a["href"] for tag, a in page.tags if tag == "use"]
    assert uses == [f"#{a['id']}" for a in images for _ in range(3)]
    assert "largest disagreement, rank 1 (2 unshared detections)" in page.text
    assert re.search(
        r"ground truth1 object.*random0 right, 1 wrong, 1 missed.*moco1 right, 0 wrong, 0 missed",
        page.text,
        re.DOTALL,
    )
    assert "<cat> .75" in page.text
    assert any("wrong" in str(a.get("class")) for tag, a in page.tags if tag == "rect")


def test_pictures_that_are_gone_or_changed_are_a_sentence(
    tmp_path: Path, make_row: Any, write_rows: Any, pictures: tuple[Path, str]
) -> None:
    rows = picture_rows(make_row, pictures[1], tmp_path)
    pictures[0].write_text(pictures[0].read_text().replace("900", "901"), encoding="utf-8")
    page, _ = page_of(write_rows(rows), tmp_path / "out")
    assert "no longer what was measured" in page.text
    pictures[0].unlink()
    page, _ = page_of(write_rows(rows), tmp_path / "out")
    assert "The test images could not be opened, so none are shown" in page.text


def test_an_arm_without_readable_detections_is_named_with_the_reason(
    tmp_path: Path, make_row: Any, write_rows: Any, pictures: tuple[Path, str]
) -> None:
    rows = picture_rows(make_row, pictures[1], tmp_path)
    damaged = {"image_id": 2, "category_id": 5, "bbox": [9, 9, 9, 9], "score": 0.75,
               "segmentation": {"size": [60, 80], "counts": "5"}}  # fmt: skip
    file = tmp_path / rows[1]["output_dir"] / "predictions.json"
    file.write_text(json.dumps([damaged]), encoding="utf-8")
    page, _ = page_of(write_rows(rows), tmp_path / "out")
    assert "moco is not shown: predictions file" in page.text and "a damaged mask" in page.text
    assert len([tag for tag, _ in page.tags if tag == "use"]) == 3 * 2
