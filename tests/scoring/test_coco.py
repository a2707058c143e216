"""COCO scoring against pycocotools itself, and by hand."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.coco_ground_truth import coco_ground_truth
from moco_det.data import DetectionDataset, read_coco
from moco_det.foundation.errors import InputError
from moco_det.scoring import read_predictions, score, score_coco, write_predictions
from tests.scoring.builders import dataset_of, random_case, row

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def direct(truth: COCO, rows: list[dict], iou_type: str) -> list[float]:
    """pycocotools' own path, with detectron2's removal of boxes from mask results."""
    rows = copy.deepcopy(rows)
    if iou_type == "segm":
        for item in rows:
            del item["bbox"]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(truth, truth.loadRes(rows), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats.tolist()


class IgnoringCOCOeval(COCOeval):
    """COCOeval that honours "ignore", which the original overwrites with iscrowd."""

    def _prepare(self) -> None:
        super()._prepare()
        for objects in self._gts.values():
            for item in objects:
                item["ignore"] = int(bool(item["iscrowd"]) or bool(item["hard"]))


def by_pycocotools(dataset: DetectionDataset, rows: list[dict], iou_type: str) -> dict:
    """Every number of `score_coco` from pycocotools' precision and recall, in full precision."""
    numbers = {record.image_id: i for i, record in enumerate(dataset.records)}
    content = coco_ground_truth(dataset)
    for image in content["images"]:
        image["id"] = numbers[image["id"]]
    for item in content["annotations"]:
        item["image_id"], item["hard"] = numbers[item["image_id"]], item["ignore"]
    found = [{**item, "image_id": numbers[item["image_id"]]} for item in copy.deepcopy(rows)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        if iou_type == "segm":
            for item in found:
                del item["bbox"]
        evaluator = IgnoringCOCOeval(truth, truth.loadRes(found), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]

    def mean(values: np.ndarray) -> float | None:
        return float(values[values > -1].mean() * 100) if (values > -1).any() else None

    found_numbers = [
        *(
            mean(p)
            for p in (precision[..., 0, 2], precision[0, ..., 0, 2], precision[5, ..., 0, 2])
        ),
        *(mean(precision[..., area, 2]) for area in (1, 2, 3)),
        *(mean(recall[..., 0, limit]) for limit in (0, 1, 2)),
        *(mean(recall[..., area, 2]) for area in (1, 2, 3)),
    ]
    column = {category: k for k, category in enumerate(evaluator.params.catIds)}
    per_class = {
        name: mean(precision[:, :, column[own], 0, 2])
        for name, own in zip(dataset.classes, dataset.category_ids, strict=True)
    }
    return {**dict(zip(NAMES, found_numbers, strict=True)), "per_class": per_class}


def hard_case(seed: int) -> tuple[DetectionDataset, list[dict]]:
    """Boxes on a coarse grid and scores of one digit, so that everything ties; crowds, difficult
    objects, all three sizes, classes whose ids fall as their indices rise, full images."""
    rng = np.random.default_rng(seed)

    def corners() -> tuple[int, ...]:
        x, y = (int(v) * 8 for v in rng.integers(0, 15, 2))
        w, h = (int(v) for v in rng.choice([8, 16, 32, 40, 96, 104], 2))
        return (x, y, x + w, y + h)

    images: dict[int | str, list] = {}
    rows = []
    for image in range(6):
        objects: list = []
        for _ in range(int(rng.integers(0, 9))):
            flags = [f for f in ("crowd", "difficult") if rng.random() < 0.15]
            objects.append((int(rng.integers(2)), corners(), *flags))
        images[image] = objects
        boxes = [box for _, box, *_ in objects for _ in range(int(rng.integers(0, 4)))]
        boxes += [corners() for _ in range(130 if image == 0 else 8)]
        for box in boxes:
            moved = tuple(v + int(rng.integers(-1, 2)) * 4 * (i > 1) for i, v in enumerate(box))
            item = row(image, int(rng.choice([9, 4, 2])), moved, round(rng.random(), 1))
            mask = np.zeros((224, 224), np.uint8, order="F")
            mask[moved[1] : moved[3], moved[0] : moved[2]] = 1
            rle = pycocotools.mask.encode(mask)
            item["segmentation"] = {"size": [224, 224], "counts": rle["counts"].decode()}
            rows.append(item)
    dataset = dataset_of(images, ("a", "b", "c"), (9, 4, 2), side=224, masks=True)
    return dataset, [rows[i] for i in rng.permutation(len(rows))]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(6))
def test_every_number_equals_pycocotools_where_everything_ties(seed: int, iou_type: str) -> None:
    dataset, rows = hard_case(seed)
    found = score_coco(dataset, rows, iou_types=[iou_type])[iou_type]
    expected = by_pycocotools(dataset, rows, iou_type)
    assert expected["per_class"]["c"] is None and 0 < expected["AP"] < 100
    classes, theirs = found.pop("per_class"), expected.pop("per_class")
    # on a machine that fuses multiplication and addition the last bit may differ
    assert found == pytest.approx(expected, abs=1e-10)
    assert classes == pytest.approx(theirs, abs=1e-10)


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
    assert [metrics[n] for n in NAMES] == pytest.approx([100 * v for v in expected], abs=1e-10)
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


def test_of_equal_overlaps_the_last_object_is_taken_and_the_wanted_before_the_rest() -> None:
    # A and B overlap the first detection alike; the second can only have A
    boxes = [(0, (0, 0, 10, 10)), (0, (4, 0, 14, 10))]
    rows = [row(1, 3, (2, 0, 12, 10), 0.9), row(1, 3, (0, 0, 10, 10), 0.8)]
    first = score_coco(dataset_of({1: boxes}), rows, iou_types=["bbox"])["bbox"]
    other = score_coco(dataset_of({1: boxes[::-1]}), rows, iou_types=["bbox"])["bbox"]
    assert first["AP50"] == pytest.approx(100.0)
    assert other["AP50"] == pytest.approx(100 * 51 / 101)
    # a better overlap with a difficult object does not keep a detection from the wanted one
    boxes = [(0, (0, 0, 10, 10)), (0, (2, 0, 12, 10), "difficult")]
    near = [row(1, 3, (2, 0, 12, 10), 0.9)]
    found = score_coco(dataset_of({1: boxes}), near, iou_types=["bbox"])["bbox"]
    assert found["AP50"] == pytest.approx(100.0)


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


@pytest.mark.detectron2
def test_equals_the_evaluator_of_detectron2_on_stored_predictions(
    sample, data_root: Path, tmp_path: Path
) -> None:
    evaluation = pytest.importorskip("detectron2.evaluation")
    import torch
    from detectron2.data import MetadataCatalog
    from detectron2.structures import Boxes, Instances

    dataset = replace(sample[0], records=sample[0].records[:30])
    # quarters of a pixel, which float32 keeps through detectron2's change to xywh
    rows = [
        {**item, "bbox": (np.rint(np.array(item["bbox"]) * 4) / 4).tolist()}
        for item in noisy_masks(dataset, seed=4)
    ]
    write_predictions(tmp_path / "predictions.json", rows)
    stored = read_predictions(tmp_path / "predictions.json", dataset)
    name = "coco_sample_for_scoring"
    index = {own: i for i, own in enumerate(dataset.category_ids)}
    json_file = data_root / "coco2017_sample" / "annotations" / "instances_val2017.json"
    MetadataCatalog.get(name).set(
        json_file=str(json_file),
        thing_classes=list(dataset.classes),
        thing_dataset_id_to_contiguous_id=index,
    )
    evaluator = evaluation.COCOEvaluator(name, ("bbox", "segm"), False, use_fast_impl=False)
    evaluator.reset()
    for record in dataset.records:
        mine = [item for item in stored if item["image_id"] == record.image_id]
        xywh = np.array([item["bbox"] for item in mine], np.float32).reshape(-1, 4)
        found = Instances((record.height, record.width))
        found.pred_boxes = Boxes(
            torch.from_numpy(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1))
        )
        found.scores = torch.tensor([item["score"] for item in mine], dtype=torch.float64)
        found.pred_classes = torch.tensor([index[item["category_id"]] for item in mine])
        masks = [pycocotools.mask.decode(item["segmentation"]) for item in mine]
        found.pred_masks = torch.tensor(
            np.array(masks).reshape(-1, record.height, record.width), dtype=torch.bool
        )
        evaluator.process([{"image_id": record.image_id}], [{"instances": found}])
    theirs = evaluator.evaluate(img_ids=[record.image_id for record in dataset.records])
    ours = score_coco(dataset, stored)
    for iou_type in ("bbox", "segm"):
        for key in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
            assert ours[iou_type][key] == pytest.approx(theirs[iou_type][key], abs=1e-9)
        for label, value in ours[iou_type]["per_class"].items():
            other = theirs[iou_type][f"AP-{label}"]
            assert np.isnan(other) if value is None else value == pytest.approx(other, abs=1e-9)
