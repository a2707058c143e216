"""The COCO ruler against pycocotools used directly, and by hand."""

from __future__ import annotations

import contextlib
import copy
import io
import json

import numpy as np
import pycocotools.mask
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from moco_det.data import DetectionDataset, coco_ground_truth, read_coco
from moco_det.errors import InputError
from moco_det.scoring import score, score_coco
from tests.scoring.builders import dataset_of, random_case, row

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def direct(truth: COCO, rows: list[dict], iou_type: str) -> list[float]:
    """pycocotools' own path, with detectron2's removal of boxes from mask results."""
    rows = copy.deepcopy(rows)
    if iou_type == "segm":
        for item in rows:
            del item["bbox"]
    with contextlib.redirect_stdout(io.StringIO()):
        ruler = COCOeval(truth, truth.loadRes(rows), iou_type)
        ruler.evaluate()
        ruler.accumulate()
        ruler.summarize()
    return ruler.stats.tolist()


def noisy_masks(dataset: DetectionDataset, seed: int) -> list[dict]:
    """Detections with masks: true boxes moved, notched masks, doubles, wrong classes."""
    rng = np.random.default_rng(seed)
    rows = []
    for record in dataset.records:
        for a in record.annotations:
            for _ in range(int(rng.integers(0, 3))):
                box = np.array(a.bbox)
                box += rng.normal(0, 0.08, 4) * np.tile(box[2:] - box[:2], 2)
                box[2:] = np.maximum(box[2:], box[:2] + 1)
                x0, y0, x1, y1 = np.maximum(np.rint(box), 0).astype(int)
                mask = np.zeros((record.height, record.width), np.uint8, order="F")
                mask[y0:y1, x0:x1] = 1
                mask[y0 : (y0 + y1) // 2, x0 : (x0 + x1) // 3] = 0  # a notch: not its own box
                rle = pycocotools.mask.encode(mask)
                category = dataset.category_ids[a.category]
                if rng.random() < 0.2:
                    category = int(rng.choice(dataset.category_ids))
                found = row(record.image_id, category, tuple(box.tolist()), float(rng.random()))
                counts = rle["counts"].decode()
                found["segmentation"] = {"size": [record.height, record.width], "counts": counts}
                rows.append(found)
    return rows


@pytest.fixture(scope="module")
def sample(data_root) -> tuple[DetectionDataset, COCO]:
    path = data_root / "coco2017_sample" / "annotations" / "instances_val2017.json"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
    return read_coco(path, data_root / "coco2017_sample" / "val2017"), truth


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_equals_pycocotools_on_the_original_json(sample, iou_type: str) -> None:
    dataset, truth = sample
    rows = noisy_masks(dataset, seed=4)
    metrics = score_coco(dataset, rows, iou_types=[iou_type])[iou_type]
    expected = direct(truth, rows, iou_type)
    assert 5 < metrics["AP"] < 90
    assert [metrics[name] for name in NAMES] == pytest.approx([100 * v for v in expected], abs=1e-6)
    defined = [v for v in metrics["per_class"].values() if v is not None]
    assert np.mean(defined) == pytest.approx(metrics["AP"], abs=1e-6)
    assert len(metrics["per_class"]) == 80


def test_equals_pycocotools_with_string_image_ids() -> None:
    dataset, rows = random_case(3, difficult=0.0, integers=False)
    numbers = {record.image_id: i for i, record in enumerate(dataset.records)}
    content = coco_ground_truth(dataset)
    for image in content["images"]:
        image["id"] = numbers[image["id"]]
    for annotation in content["annotations"]:
        annotation["image_id"] = numbers[annotation["image_id"]]
    truth = COCO()
    truth.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    metrics = score_coco(dataset, rows, iou_types=["bbox"])["bbox"]
    numbered = [{**item, "image_id": numbers[item["image_id"]]} for item in rows]
    expected = [100 * v if v >= 0 else None for v in direct(truth, numbered, "bbox")]
    found = [metrics[name] for name in NAMES]
    assert [v is None for v in found] == [v is None for v in expected]
    assert [v for v in found if v is not None] == pytest.approx(
        [v for v in expected if v is not None], abs=1e-9
    )
    assert metrics["per_class"]["c3"] is None


def test_one_object_by_hand() -> None:
    # IoU 0.8: right at .50 to .80 (not less than the threshold), seven of ten thresholds
    dataset = dataset_of({1: [(1, (10, 10, 30, 30))]})
    metrics = score_coco(dataset, [row(1, 7, (10, 10, 30, 26), 0.9)], iou_types=["bbox"])["bbox"]
    assert metrics["AP"] == pytest.approx(70.0) and metrics["AP50"] == pytest.approx(100.0)
    assert metrics["per_class"] == {"cat": None, "dog": pytest.approx(70.0)}
    # 400 square pixels are small; there is nothing medium or large
    assert metrics["APs"] == pytest.approx(70.0)
    assert metrics["APm"] is None and metrics["APl"] is None


def test_nothing_found_is_zero_and_nothing_there_is_none() -> None:
    dataset = dataset_of({1: [(0, (10, 10, 30, 30))], 2: []}, masks=True)
    for metrics in score(dataset, [], with_masks=True).values():
        assert (metrics["AP"], metrics["AP50"], metrics["AR100"]) == (0.0, 0.0, 0.0)
        assert metrics["per_class"] == {"cat": 0.0, "dog": None} and metrics["APl"] is None
    nothing = score(dataset_of({1: []}), [], with_masks=False)["bbox"]
    assert nothing["AP"] is None and nothing["AR1"] is None
    json.dumps(nothing, allow_nan=False)


def test_difficult_objects_are_neither_asked_for_nor_mistakes() -> None:
    dataset = dataset_of({1: [(0, (10, 10, 30, 30)), (0, (50, 50, 70, 70), "difficult")]})
    right, hard = row(1, 3, (10, 10, 30, 30), 0.8), row(1, 3, (50, 50, 70, 70), 0.9)
    for rows in ([right], [right, hard]):
        assert score_coco(dataset, rows, iou_types=["bbox"])["bbox"]["AP"] == pytest.approx(100.0)


def test_crowds_take_any_number_of_detections() -> None:
    dataset = dataset_of({1: [(0, (10, 10, 30, 30)), (0, (40, 40, 90, 90), "crowd")]})
    boxes = [(10, 10, 30, 30), (40, 40, 60, 60), (60, 60, 80, 80)]
    rows = [row(1, 3, box, 0.5 + 0.1 * i) for i, box in enumerate(boxes)]
    assert score_coco(dataset, rows, iou_types=["bbox"])["bbox"]["AP"] == pytest.approx(100.0)


def test_the_number_of_detections_is_limited_and_named() -> None:
    dataset = dataset_of({1: [(0, (10, 10, 30, 30))]})
    wrong = [row(1, 3, (50, 50, 60, 60 + i), 0.9) for i in range(15)]
    rows = [*wrong, row(1, 3, (10, 10, 30, 30), 0.1)]
    few = score_coco(dataset, rows, iou_types=["bbox"], max_dets=12)["bbox"]
    many = score_coco(dataset, rows, iou_types=["bbox"])["bbox"]
    assert few["AP"] == few["AR12"] == 0.0 and many["AR100"] == 100.0 and many["AP"] > 0


def test_scoring_leaves_its_inputs_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    dataset = dataset_of({1: [(0, (10, 10, 30, 30))]}, masks=True)
    mask = np.zeros((100, 100, 1), np.uint8, order="F")
    mask[10:30, 10:30] = 1
    rle = pycocotools.mask.encode(mask)[0]
    found = row(1, 3, (10, 10, 30, 30), 0.9)
    found["segmentation"] = {"size": [100, 100], "counts": rle["counts"].decode()}
    before, annotations = copy.deepcopy(found), copy.deepcopy(dataset.records)
    metrics = score_coco(dataset, [found])
    assert metrics["segm"]["AP"] == metrics["bbox"]["AP"] == pytest.approx(100.0)
    assert found == before and dataset.records == annotations
    assert capsys.readouterr().out == ""


def test_masks_that_are_not_there_are_refused() -> None:
    boxes = dataset_of({1: [(0, (10, 10, 30, 30))]})
    with pytest.raises(InputError, match="made has no masks"):
        score(boxes, [], with_masks=True)
    masks = dataset_of({1: [(0, (10, 10, 30, 30))]}, masks=True)
    with pytest.raises(InputError, match="row 0 has no mask"):
        score(masks, [row(1, 3, (1, 1, 9, 9), 0.5)], with_masks=True)
    with pytest.raises(InputError, match="IoU type 'keypoints' is not known"):
        score_coco(masks, [], iou_types=["keypoints"])
