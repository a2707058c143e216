"""VOC scoring against hand-computed cases and a slow transcription of the devkit's definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moco_det.data import read_voc
from moco_det.scoring import read_predictions, score, score_voc, write_predictions
from moco_det.scoring.voc import average_precision
from tests.scoring.builders import dataset_of, random_case, row


def slow_voc(dataset, predictions, category: int, threshold: float, metric: str) -> float | None:
    """One class's AP as the devkit's VOCevaldet and VOCap say it, detection by detection.

    Boxes are first put back into the devkit's own numbers: 1-based, inclusive.
    """

    def pixels(box) -> tuple[float, float, float, float]:
        return box[0] + 1, box[1] + 1, box[2], box[3]

    objects: dict = {}
    wanted = 0
    for record in dataset.records:
        of_class = [a for a in record.annotations if a.category == category]
        objects[record.image_id] = [[pixels(a.bbox), a.difficult, False] for a in of_class]
        wanted += sum(not a.difficult for a in of_class)
    if wanted == 0:
        return None
    mine = [p for p in predictions if p["category_id"] == dataset.category_ids[category]]
    mine.sort(key=lambda p: -p["score"])
    true, false = [], []
    for p in mine:
        x, y, w, h = p["bbox"]
        bb = pixels((x, y, x + w, y + h))
        best, chosen = -1.0, None
        for item in objects[p["image_id"]]:
            gt = item[0]
            iw = min(bb[2], gt[2]) - max(bb[0], gt[0]) + 1
            ih = min(bb[3], gt[3]) - max(bb[1], gt[1]) + 1
            if iw > 0 and ih > 0:
                area = (bb[2] - bb[0] + 1) * (bb[3] - bb[1] + 1)
                area += (gt[2] - gt[0] + 1) * (gt[3] - gt[1] + 1) - iw * ih
                if iw * ih / area > best:
                    best, chosen = iw * ih / area, item
        tp = fp = 0
        if chosen is not None and best > threshold:
            if not chosen[1]:
                tp, fp = (0, 1) if chosen[2] else (1, 0)
                chosen[2] = True
        else:
            fp = 1
        true.append(tp)
        false.append(fp)
    tp, fp = np.cumsum(true), np.cumsum(false)
    recall, precision = tp / wanted, tp / np.maximum(tp + fp, np.finfo(float).eps)
    if metric == "2007":
        ap = 0.0
        for t in np.arange(0.0, 1.1, 0.1):
            reached = precision[recall >= t]
            ap += (reached.max() if reached.size else 0.0) / 11
        return ap
    mrec = np.concatenate([[0.0], recall, [1.0]])
    mpre = np.concatenate([[0.0], precision, [0.0]])
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    return float(sum((mrec[i + 1] - mrec[i]) * mpre[i + 1] for i in range(len(mrec) - 1)))


@pytest.mark.parametrize("metric", ["2007", "area"])
@pytest.mark.parametrize("seed", range(8))
def test_equals_the_devkit_definition(seed: int, metric) -> None:
    dataset, rows = random_case(seed, integers=seed % 2 == 0)
    found = score_voc(dataset, rows, metric=metric)
    per_threshold = []
    for percent in range(50, 100, 5):
        aps = [slow_voc(dataset, rows, c, percent / 100, metric) for c in range(4)]
        assert aps[3] is None  # the class without objects
        per_threshold.append(aps[:3])
    table = np.array(per_threshold) * 100
    assert found["AP"] == pytest.approx(table.mean(), abs=1e-9)
    assert found["AP50"] == pytest.approx(table[0].mean(), abs=1e-9)
    assert found["AP75"] == pytest.approx(table[5].mean(), abs=1e-9)
    for c in range(3):
        assert found["per_class"][f"c{c}"] == pytest.approx(table[:, c].mean(), abs=1e-9)
    assert found["per_class"]["c3"] is None and found["metric"] == metric


def test_two_objects_by_hand() -> None:
    # objects A, B; detections by score: A right, nothing, B right
    # recall 1/2 1/2 1; precision 1 1/2 2/3
    hits = np.array([True, False, True])
    # area: 1/2 * 1 + 1/2 * 2/3
    assert average_precision(hits, 2, "area") == pytest.approx(5 / 6)
    # 11 points: 0 .. 0.5 (six) see 1, 0.6 .. 1.0 (five) see 2/3
    assert average_precision(hits, 2, "2007") == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert average_precision(np.zeros(0, bool), 2, "area") == 0.0


def test_overlap_by_hand() -> None:
    # 20x10 over 20x20, IoU 0.5: not more than 0.5, so a mistake at 0.5 as well
    dataset = dataset_of({1: [(0, (10, 10, 30, 30))]})
    assert score_voc(dataset, [row(1, 3, (10, 10, 30, 20), 0.9)])["AP50"] == 0.0
    # 20x16 over 20x20, IoU 0.8: right at .50 .55 .60 .65 .70 .75, not above 0.8
    found = score_voc(dataset, [row(1, 3, (10, 10, 30, 26), 0.9)])
    assert found["AP50"] == found["AP75"] == 100.0 and found["AP"] == pytest.approx(60.0)


def test_a_second_detection_of_an_object_is_a_mistake() -> None:
    dataset = dataset_of({1: [(0, (10, 10, 30, 30)), (0, (50, 50, 70, 70))]})
    boxes = [(10, 10, 30, 30), (10, 10, 30, 30), (50, 50, 70, 70)]
    rows = [row(1, 3, box, 0.9 - 0.1 * i) for i, box in enumerate(boxes)]
    assert score_voc(dataset, rows)["AP50"] == pytest.approx(100 * 5 / 6)
    # the better of two takes the object, whatever their order in the file
    assert score_voc(dataset, rows[::-1])["AP50"] == pytest.approx(100 * 5 / 6)


def test_difficult_objects_are_neither_asked_for_nor_mistakes() -> None:
    dataset = dataset_of({1: [(0, (10, 10, 30, 30)), (0, (50, 50, 70, 70), "difficult")]})
    found = [row(1, 3, (50, 50, 70, 70), s) for s in (0.95, 0.94)]
    assert score_voc(dataset, [*found, row(1, 3, (10, 10, 30, 30), 0.9)])["AP50"] == 100.0
    only = dataset_of({1: [(0, (50, 50, 70, 70), "difficult")]})
    assert score_voc(only, found)["AP"] is None


def test_nothing_found_is_zero_and_nothing_there_is_none() -> None:
    dataset = dataset_of({1: [(0, (10, 10, 30, 30))], 2: []})
    empty = score_voc(dataset, [])
    assert (empty["AP"], empty["AP50"], empty["AP75"]) == (0.0, 0.0, 0.0)
    assert empty["per_class"] == {"cat": 0.0, "dog": None}
    nothing = score_voc(dataset_of({1: []}), [row(1, 3, (0, 0, 9, 9), 0.5)])
    assert (nothing["AP"], nothing["AP50"], nothing["AP75"]) == (None, None, None)


def test_the_truth_scores_a_hundred_on_real_data(data_root) -> None:
    dataset = read_voc(data_root / "voc2012_sample", "val")
    rows = [
        row(r.image_id, dataset.category_ids[a.category], a.bbox, 1.0)
        for r in dataset.records
        for a in r.annotations
    ]
    metrics = score(dataset, rows, with_masks=False)
    assert set(metrics) == {"bbox", "voc"} and metrics["voc"]["metric"] == "area"
    assert metrics["voc"]["AP"] == pytest.approx(100.0)
    assert metrics["bbox"]["AP"] == pytest.approx(100.0)


@pytest.mark.detectron2
@pytest.mark.parametrize("metric", ["2007", "area"])
def test_equals_the_evaluator_of_detectron2_in_full_precision(
    data_root: Path, tmp_path: Path, metric
) -> None:
    peer = pytest.importorskip("detectron2.evaluation.pascal_voc_evaluation")
    root = data_root / "voc2012_sample"
    dataset = read_voc(root, "val")
    rng = np.random.default_rng(0)
    rows = []
    for record in dataset.records:
        for a in record.annotations:
            for _ in range(int(rng.integers(1, 4))):
                box = np.array(a.bbox) + rng.normal(0, 8, 4)
                category = dataset.category_ids[a.category]
                rows.append(row(record.image_id, category, tuple(box.tolist()), rng.random()))
    lines: dict[int, list[str]] = {}
    for item in rows:
        x, y, w, h = item["bbox"]
        line = f"{item['image_id']} {item['score']!r} {x + 1!r} {y + 1!r} {x + w!r} {y + h!r}"
        lines.setdefault(item["category_id"], []).append(line)
    aps = {50: [], 75: []}
    for category, name in zip(dataset.category_ids, dataset.classes, strict=True):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines[category]))
        for percent, found in aps.items():
            _, _, ap = peer.voc_eval(
                str(tmp_path / "{}.txt"),
                str(root / "Annotations" / "{}.xml"),
                str(root / "ImageSets" / "Main" / "val.txt"),
                name,
                percent / 100,
                metric == "2007",
            )
            found.append(ap)
    ours = score_voc(dataset, rows, metric=metric)
    assert ours["AP50"] == pytest.approx(100 * np.mean(aps[50]), abs=1e-9)
    assert ours["AP75"] == pytest.approx(100 * np.mean(aps[75]), abs=1e-9)


@pytest.mark.detectron2
@pytest.mark.parametrize("year", [2007, 2012])
def test_equals_the_evaluator_of_detectron2_on_stored_predictions(
    data_root: Path, tmp_path: Path, year: int
) -> None:
    evaluation = pytest.importorskip("detectron2.evaluation")
    import torch
    from detectron2.data import MetadataCatalog
    from detectron2.structures import Boxes, Instances

    root = data_root / "voc2012_sample"
    dataset = read_voc(root, "val")
    rng = np.random.default_rng(1)
    rows = []
    for record in dataset.records:
        for a in record.annotations:
            for _ in range(int(rng.integers(1, 4))):
                # halves of a pixel and thousandths of a score pass detectron2's text unharmed
                box = np.rint(2 * (np.array(a.bbox) + rng.normal(0, 8, 4))) / 2
                rows.append(row(record.image_id, a.category + 1, tuple(box.tolist()), 0.0))
    for label in dataset.category_ids:
        mine = [item for item in rows if item["category_id"] == label]
        for item, score_of in zip(mine, rng.permutation(999), strict=False):
            item["score"] = (int(score_of) + 1) / 1000
    write_predictions(tmp_path / "predictions.json", rows)
    stored = read_predictions(tmp_path / "predictions.json", dataset)

    name = f"voc_sample_for_scoring_{year}"
    MetadataCatalog.get(name).set(
        dirname=str(root), split="val", year=year, thing_classes=list(dataset.classes)
    )
    evaluator = evaluation.PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    for record in dataset.records:
        mine = [item for item in stored if item["image_id"] == record.image_id]
        xywh = np.array([item["bbox"] for item in mine]).reshape(-1, 4)
        found = Instances((record.height, record.width))
        found.pred_boxes = Boxes(
            torch.from_numpy(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1))
        )
        found.scores = torch.tensor([item["score"] for item in mine])
        found.pred_classes = torch.tensor([item["category_id"] - 1 for item in mine])
        evaluator.process([{"image_id": record.image_id}], [{"instances": found}])
    theirs = evaluator.evaluate()["bbox"]
    ours = score_voc(dataset, stored, metric="2007" if year == 2007 else "area")
    assert 5 < ours["AP"] < 95
    for key in ("AP", "AP50", "AP75"):
        assert ours[key] == pytest.approx(theirs[key], abs=1e-9)
