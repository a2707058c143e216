"""Detections of detectron2 as rows in the data set's own ids, and their scores."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from moco_det.data import Annotation, DetectionDataset, Record

pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

from detectron2.structures import Boxes, Instances  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402

from moco_det.plugin.evaluator import Evaluator, numbers_only  # noqa: E402
from moco_det.plugin.metrics_log import MetricsLog  # noqa: E402

SQUARE = [[2.0, 1.0, 6.0, 1.0, 6.0, 5.0, 2.0, 5.0]]
DATASET = DetectionDataset(
    name="one",
    uri="one",
    records=(
        Record("a7", "a7.jpg", 8, 10, (Annotation((2.0, 1.0, 6.0, 5.0), 1, area=16.0, id=1),)),
    ),
    classes=("cat", "dog"),
    category_ids=(3, 11),
)


def detections(masks: bool) -> Instances:
    found = Instances((8, 10))
    found.pred_boxes = Boxes(torch.tensor([[2.0, 1.0, 6.0, 5.0]]))
    found.scores = torch.tensor([0.75])
    found.pred_classes = torch.tensor([1])
    if masks:
        found.pred_masks = torch.zeros(1, 8, 10, dtype=torch.bool)
        found.pred_masks[0, 1:5, 2:6] = True
    return found


def test_a_detection_is_written_in_the_data_sets_own_ids_and_scored(tmp_path: Path) -> None:
    evaluator = Evaluator(DATASET, tmp_path, with_masks=False)
    evaluator.reset()
    evaluator.process([{"image_id": "a7"}], [{"instances": detections(masks=False)}])
    metrics = evaluator.evaluate()
    # one object, found exactly: AP is 100 for its class, and undefined for the class without one
    assert metrics["bbox"]["AP"] == pytest.approx(100)
    assert metrics["bbox"]["per_class"] == {"cat": None, "dog": pytest.approx(100)}
    assert json.loads((tmp_path / "predictions.json").read_text()) == [
        {"image_id": "a7", "category_id": 11, "bbox": [2.0, 1.0, 4.0, 4.0], "score": 0.75}
    ]


def test_masks_are_written_as_run_lengths_of_the_image(tmp_path: Path) -> None:
    evaluator = Evaluator(DATASET, tmp_path, with_masks=True)
    evaluator.process([{"image_id": "a7"}], [{"instances": detections(masks=True)}])
    mask = evaluator.rows[0]["segmentation"]
    assert mask["size"] == [8, 10]
    # column by column: 2 empty columns and one pixel (17), then 4 pixels, 4 off, ... four times
    import pycocotools.mask

    assert pycocotools.mask.area(mask) == 16
    assert pycocotools.mask.toBbox(mask).tolist() == [2.0, 1.0, 4.0, 4.0]


def test_no_detection_at_all_is_an_ap_of_zero(tmp_path: Path) -> None:
    evaluator = Evaluator(DATASET, tmp_path, with_masks=False)
    evaluator.process([{"image_id": "a7"}], [{"instances": detections(masks=False)[:0]}])
    assert evaluator.evaluate()["bbox"]["AP"] == 0
    assert json.loads((tmp_path / "predictions.json").read_text()) == []


def test_a_second_round_starts_empty(tmp_path: Path) -> None:
    evaluator = Evaluator(DATASET, tmp_path, with_masks=False)
    for _ in range(2):
        evaluator.reset()
        evaluator.process([{"image_id": "a7"}], [{"instances": detections(masks=False)}])
    assert len(evaluator.rows) == 1


def test_detectron2_keeps_the_numbers_and_nan_where_there_is_none() -> None:
    metrics = {"voc": {"AP": 12, "AP75": None, "metric": "area", "per_class": {"cat": 1.0}}}
    kept = numbers_only(metrics)["voc"]
    assert kept.keys() == {"AP", "AP75"}
    assert kept["AP"] == 12
    assert math.isnan(kept["AP75"])


def test_the_log_has_each_scalar_once_and_null_where_undefined(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", max_iter=2)
    log.keep_before(0)
    with EventStorage(0) as storage:
        storage.put_scalar("total_loss", 2.0)
        log.write()
        log.write()
        storage.step()
        storage.put_scalar("total_loss", 1.0)
        log.write()
        storage.step()  # detectron2 evaluates one iteration after the last
        storage.put_scalar("bbox/AP", 50.0)
        storage.put_scalar("bbox/APl", math.nan)
        log.write()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"iteration": 0, "total_loss": 2.0},
        {"iteration": 1, "total_loss": 1.0},
        {"iteration": 1, "bbox/AP": 50.0, "bbox/APl": None},
    ]


def test_a_resumed_run_keeps_the_lines_of_the_steps_that_it_does_not_do_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metrics.jsonl"
    steps = [json.dumps({"iteration": i, "total_loss": 1.0}) for i in (0, 1)]
    text = "\n".join([*steps, '{"iteration": 1, "bbox/AP": 50.0}', '{"iteration": 2, "tot'])
    for first, max_iter, kept in [(1, 2, steps[:1]), (2, 2, steps), (0, 2, [])]:
        path.write_text(text)
        MetricsLog(path, max_iter).keep_before(first)
        assert path.read_text().splitlines() == kept
    path.write_text(text)
    MetricsLog(path, max_iter=4).keep_before(2)  # an evaluation on the way stays
    assert len(path.read_text().splitlines()) == 3
