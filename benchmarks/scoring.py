"""Seconds from predictions to AP: pycocotools and detectron2's VOC evaluator against ours, in turn.

    python benchmarks/scoring.py coco [--images 5000] [--boxes 100] [--masks]
    PYTHONPATH=DETECTRON2 python benchmarks/scoring.py voc [--images 4952] [--boxes 30]

Predictions are made, not a model's: objects moved a little with high scores, and inventions with
low ones, mostly of classes that the image has. coco starts from the rows in memory on both sides
and ends with the twelve numbers and each class's AP. voc starts from each image's arrays and from
the XML files, as detectron2's evaluator does, and ends with AP, AP50 and AP75. Both run in this
one process, one after the other, and a ratio is taken within a round. The seconds are the process's
own (time.process_time, all threads), which a busy machine stretches less than those of the clock.

voc needs detectron2, as tests under pytest.mark.detectron2 do.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from coco_ground_truth import coco_ground_truth
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from moco_det.data import VOC_CLASSES, Annotation, DetectionDataset, Record, read_voc
from moco_det.foundation.errors import InputError
from moco_det.scoring import result_rows, score_coco, score_voc
from moco_det_tools.entry import run

Rows = list[dict[str, Any]]
HEIGHT, WIDTH = 480, 640
# objects an image: COCO val2017 has 36,781 on 5,000 images, VOC2007 test 14,976 on 4,952
MEAN_OBJECTS = {"coco": 7.4, "voc": 3.0}


def made_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes (count, 4) xyxy inside the image, sides from 8 pixels on, small ones more often."""
    sides = np.exp(rng.uniform(np.log(8), np.log(400), (count, 2)))
    corner = rng.random((count, 2)) * np.maximum([WIDTH, HEIGHT] - sides, 1)
    return np.concatenate([corner, np.minimum(corner + sides, [WIDTH, HEIGHT])], axis=1)


def oval(box: Sequence[float]) -> list[float]:
    """A polygon of 16 corners that fills a box as a thing does."""
    angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    x0, y0, x1, y1 = box
    points = [(x0 + x1) / 2 + np.cos(angle) * (x1 - x0) / 2]
    points.append((y0 + y1) / 2 + np.sin(angle) * (y1 - y0) / 2)
    return np.stack(points, axis=1).ravel().tolist()


def made_predictions(
    rng: np.random.Generator, boxes: np.ndarray, labels: np.ndarray, prior: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(boxes, scores, classes) of `count` detections of one image, best first."""
    owner = np.repeat(np.arange(len(boxes)), rng.poisson(2.0, len(boxes)))[: count // 2]
    sides = np.tile(boxes[owner, 2:] - boxes[owner, :2], 2)
    near = boxes[owner] + rng.normal(0, 0.08, (len(owner), 4)) * sides
    other = made_boxes(rng, count - len(owner))
    here = labels if len(labels) else np.zeros(1, dtype=np.int64)
    guess = np.where(
        rng.random(len(other)) < 0.6,
        rng.choice(here, len(other)),
        rng.choice(len(prior), len(other), p=prior),
    )
    found = np.concatenate([near, other])
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
    found = found.clip(0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
    scores = np.concatenate([rng.beta(4, 2, len(near)), rng.beta(1, 12, len(other))])
    order = np.argsort(-scores)
    return found[order], scores[order], np.concatenate([labels[owner], guess])[order]


Found = list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]


def made(
    scorer: str, images: int, boxes: int, classes: Sequence[str], masks: bool
) -> tuple[DetectionDataset, Found]:
    """A data set and each image's detections (id, boxes, scores, classes)."""
    rng = np.random.default_rng(0)
    prior = 1.0 / (np.arange(len(classes)) + 3.0)
    prior /= prior.sum()
    records, found = [], []
    for number in tqdm(range(1, images + 1), desc="making predictions", delay=2):
        present = rng.choice(len(classes), size=int(rng.integers(1, 5)), p=prior)
        count = int(rng.geometric(1.0 / MEAN_OBJECTS[scorer]))
        truth = np.round(made_boxes(rng, count), 0 if scorer == "voc" else 2)
        truth[:, 2:] = np.maximum(truth[:, 2:], truth[:, :2] + 2)
        truth[:, :2] = np.minimum(truth[:, :2], truth[:, 2:] - 2)
        labels = rng.choice(present, count)
        annotations = [
            Annotation(
                (x0, y0, x1, y1),
                int(label),
                iscrowd=scorer == "coco" and rng.random() < 0.012,
                difficult=scorer == "voc" and rng.random() < 0.15,
                area=(x1 - x0) * (y1 - y0) * (np.pi / 4 if masks else 1.0),
                segmentation=[oval((x0, y0, x1, y1))] if masks else None,
            )
            for (x0, y0, x1, y1), label in zip(truth.tolist(), labels, strict=True)
        ]
        records.append(Record(number, f"{number:06d}.jpg", HEIGHT, WIDTH, tuple(annotations)))
        found.append((number, *made_predictions(rng, truth, labels, prior, boxes)))
    ids = tuple(range(1, len(classes) + 1))
    return (
        DetectionDataset("made", "made", tuple(records), tuple(classes), ids, has_masks=masks),
        found,
    )


def rows_of(dataset: DetectionDataset, found: Found, *, masks: bool) -> Rows:
    """COCO result rows, with an oval mask in each box where `masks` is set."""
    rows: Rows = []
    for image_id, boxes, scores, labels in tqdm(found, desc="writing rows", delay=2):
        mine = result_rows(dataset, image_id, boxes, scores, labels)
        if masks:
            shapes = [oval(box) for box in boxes.tolist()]
            for row, rle in zip(
                mine, pycocotools.mask.frPyObjects(shapes, HEIGHT, WIDTH), strict=True
            ):
                row["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
        rows += mine
    return rows


def by_pycocotools(dataset: DetectionDataset, rows: Rows, iou_type: str) -> list[float]:
    """The twelve numbers by pycocotools as its users call it, and each class's AP beside them."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = coco_ground_truth(dataset)
        truth.createIndex()
        scorer = COCOeval(truth, truth.loadRes(rows), iou_type)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    precision = scorer.eval["precision"][:, :, :, 0, -1]
    for k in range(precision.shape[2]):
        values = precision[:, :, k]
        values[values > -1].mean() if (values > -1).any() else None
    return [100 * float(value) for value in scorer.stats]


def by_faster_coco_eval(dataset: DetectionDataset, rows: Rows, iou_type: str) -> list[float]:
    """The twelve numbers by faster-coco-eval, pycocotools' interface in C++."""
    from faster_coco_eval import COCO as FasterCOCO
    from faster_coco_eval import COCOeval_faster

    with contextlib.redirect_stdout(io.StringIO()):
        truth = FasterCOCO(coco_ground_truth(dataset))
        scorer = COCOeval_faster(truth, truth.loadRes(rows), iou_type)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return [100 * float(value) for value in scorer.stats[:12]]


def ours_coco(dataset: DetectionDataset, rows: Rows, iou_type: str) -> list[float]:
    """The twelve numbers by this project, in the same order."""
    metrics = score_coco(dataset, rows, iou_types=[iou_type])[iou_type]
    return [value for name, value in metrics.items() if name != "per_class"]


def in_turn(
    contestants: dict[str, Callable[[], list[float]]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Processor seconds of every contestant in every round, and the numbers each found."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    numbers = {}
    with tqdm(total=rounds * len(contestants), desc="scoring in turn") as bar:
        for _ in range(rounds):
            for name, contestant in contestants.items():
                start = time.process_time()
                numbers[name] = contestant()
                seconds[name].append(time.process_time() - start)
                bar.update()
    return seconds, numbers


def table(seconds: dict[str, list[float]], numbers: dict[str, list[float]]) -> list[str]:
    """A line a contestant: median seconds, the first's ratio to it with its range, and AP."""
    reference = next(iter(seconds.values()))
    lines = [f"{'':24}{'seconds':>9}{'ratio':>8}  {'(lowest..highest)':20}{'AP':>10}{'AP50':>10}"]
    for name, values in seconds.items():
        ratios = [theirs / mine for theirs, mine in zip(reference, values, strict=True)]
        span = f"({min(ratios):.1f}..{max(ratios):.1f})"
        lines.append(
            f"{name:24}{statistics.median(values):9.2f}{statistics.median(ratios):8.1f}"
            f"  {span:20}{numbers[name][0]:10.4f}{numbers[name][1]:10.4f}"
        )
    return lines


def largest_difference(numbers: dict[str, list[float]]) -> str:
    """How far the first contestant's numbers are from each other one's."""
    first, *others = numbers
    gaps = [
        f"{name} {max(abs(a - b) for a, b in zip(numbers[first], numbers[name], strict=True)):.2g}"
        for name in others
    ]
    return f"largest difference from {first}, in percent AP: " + ", ".join(gaps)


def compare_coco(args: argparse.Namespace) -> None:
    """Boxes or masks of COCO's size."""
    dataset, found = made(
        "coco", args.images, args.boxes or 100, [f"c{i}" for i in range(80)], args.masks
    )
    rows = rows_of(dataset, found, masks=args.masks)
    iou_type = "segm" if args.masks else "bbox"
    contestants: dict[str, Callable[[Rows], list[float]]] = {
        "pycocotools": lambda mine: by_pycocotools(dataset, mine, iou_type)
    }
    if args.faster_coco_eval:
        contestants["faster-coco-eval"] = lambda mine: by_faster_coco_eval(dataset, mine, iou_type)
    contestants["ours"] = lambda mine: ours_coco(dataset, mine, iou_type)
    print(f"{iou_type}: {args.images} images, {dataset.objects} objects, {len(rows)} detections")
    # the others write into the rows they are given, so each run has its own
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    numbers: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for name, contestant in contestants.items():
            mine = copy.deepcopy(rows)
            if iou_type == "segm" and name != "ours":
                for row in mine:  # or their area would be the box's
                    del row["bbox"]
            spent, got = in_turn({name: lambda c=contestant, m=mine: c(m)}, 1)  # type: ignore[misc]
            seconds[name] += spent[name]
            numbers |= got
    print("\n".join([*table(seconds, numbers), largest_difference(numbers)]))


def write_voc(folder: Path, dataset: DetectionDataset) -> None:
    """The data set as a VOC folder; the images are empty files, for nobody here opens them."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for record in dataset.records:
        objects = "".join(
            f"<object><name>{dataset.classes[a.category]}</name><pose>Unspecified</pose>"
            f"<truncated>0</truncated><difficult>{int(a.difficult)}</difficult><bndbox>"
            f"<xmin>{int(a.bbox[0]) + 1}</xmin><ymin>{int(a.bbox[1]) + 1}</ymin>"
            f"<xmax>{int(a.bbox[2])}</xmax><ymax>{int(a.bbox[3])}</ymax></bndbox></object>"
            for a in record.annotations
        )
        stem = f"{record.image_id:06d}"
        (folder / "Annotations" / f"{stem}.xml").write_text(
            f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth>"
            f"</size>{objects}</annotation>"
        )
        (folder / "JPEGImages" / f"{stem}.jpg").touch()
    stems = [f"{record.image_id:06d}" for record in dataset.records]
    (folder / "ImageSets" / "Main" / "test.txt").write_text("\n".join(stems))


def compare_voc(args: argparse.Namespace) -> None:
    """A VOC test set's size, from arrays and XML files to AP."""
    try:
        import torch
        from detectron2.data import MetadataCatalog
        from detectron2.evaluation import PascalVOCDetectionEvaluator, pascal_voc_evaluation
        from detectron2.structures import Boxes, Instances
    except ImportError as error:
        raise InputError(f"voc needs detectron2 ({error}): set PYTHONPATH to a checkout") from None

    dataset, found = made("voc", args.images, args.boxes or 30, VOC_CLASSES, False)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / f"VOC{args.year}"
        write_voc(folder, dataset)
        MetadataCatalog.get("made_voc").set(
            dirname=str(folder), split="test", year=args.year, thing_classes=list(VOC_CLASSES)
        )
        outputs = []
        for image_id, boxes, scores, labels in found:
            instances = Instances((HEIGHT, WIDTH))
            instances.pred_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32))
            instances.scores = torch.as_tensor(scores, dtype=torch.float32)
            instances.pred_classes = torch.as_tensor(labels)
            outputs.append((f"{image_id:06d}", instances))

        def theirs() -> list[float]:
            pascal_voc_evaluation.parse_rec.cache_clear()
            evaluator = PascalVOCDetectionEvaluator("made_voc")
            evaluator.reset()
            for image_id, instances in outputs:
                evaluator.process([{"image_id": image_id}], [{"instances": instances}])
            return list(evaluator.evaluate()["bbox"].values())

        def ours() -> list[float]:
            truth = read_voc(folder, "test", VOC_CLASSES)
            rows: Rows = []
            for image_id, instances in outputs:
                rows += result_rows(
                    truth,
                    image_id,
                    instances.pred_boxes.tensor.numpy(),
                    instances.scores.numpy(),
                    instances.pred_classes.numpy(),
                )
            metrics = score_voc(truth, rows, metric=truth.voc_metric)
            return [metrics["AP"], metrics["AP50"], metrics["AP75"]]

        detections = sum(len(labels) for *_, labels in found)
        print(
            f"voc, {'2007' if args.year == 2007 else 'area'} metric: {args.images} images, "
            f"{dataset.objects} objects, {detections} detections"
        )
        seconds, numbers = in_turn({"detectron2": theirs, "ours": ours}, args.rounds)
    print("\n".join([*table(seconds, numbers), largest_difference(numbers)]))
    print("(detectron2 rounds boxes to 0.1 px and scores to 0.001 on their way through text)")


def parser() -> argparse.ArgumentParser:
    """The command line of this benchmark."""
    made_parser = argparse.ArgumentParser(
        description="Processor seconds from predictions to AP, ours and the peer's in turn."
    )
    commands = made_parser.add_subparsers(dest="command", required=True)
    for name, images in (("coco", 5000), ("voc", 4952)):
        command = commands.add_parser(name)
        command.add_argument("--images", type=int, default=images)
        command.add_argument("--boxes", type=int, help="an image (coco 100, voc 30)")
        command.add_argument("--rounds", type=int, default=2)
        if name == "coco":
            command.add_argument("--masks", action="store_true", help="masks instead of boxes")
            command.add_argument(
                "--faster-coco-eval", action="store_true", help="a third line, where installed"
            )
        else:
            command.add_argument("--year", type=int, default=2007, choices=(2007, 2012))
    return made_parser


COMMANDS = {"coco": compare_coco, "voc": compare_voc}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print the table."""
    args = parser().parse_args(argv)
    COMMANDS[args.command](args)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
