"""From image files to COCO result rows: our evaluation, detectron2's, and the model alone.

    PYTHONPATH=DETECTRON2 python benchmarks/evaluation.py --device cuda [--images 256] [--size 800]

Mask R-CNN, ResNet-50-FPN, with random weights whose every image gives 100 detections with masks,
about 100 pixels wide: what is measured is the way of the numbers, not their sense. Ours reads,
resizes, detects, pastes and encodes; detectron2's does the same by its test loader and
COCOEvaluator, with as many workers; "the model alone" has its images read and resized already.
All take turns in one process after a warm-up on the first images, detectron2 over every fourth;
a ratio is taken within a round.
Without detectron2 its row is left out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image
from rows import add_rows_option, write_row
from tqdm import tqdm

from moco_det.data import DetectionDataset, Record
from moco_det.foundation.errors import InputError
from moco_det.foundation.precision import Precision
from moco_det.settings.config import get_cfg, load_yaml, merge, merge_overrides
from moco_det.standalone.build import build_detector, build_mapper
from moco_det.standalone.detector import GeneralizedRCNN
from moco_det.standalone.evaluate import BATCH, predict
from moco_det_tools.entry import run

BASE = Path(__file__).resolve().parents[1] / "configs" / "base" / "RCNN_FPN.yaml"
CLASSES = 80
FILES = 64  # which come again where more images are asked for
SHARE = {"detectron2": 4}  # of the images, a fourth: it takes many times as long
Evaluation = Callable[[Sequence[Record]], int]  # images to the number of detections


def keys(args: argparse.Namespace) -> list[str]:
    pairs = {
        "MODEL.DEVICE": args.device,
        "MODEL.MASK_ON": "True",
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.FPN.NORM": "BN",
        "MODEL.ROI_HEADS.NUM_CLASSES": str(CLASSES),
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",
        # random weights find what the finest map has anchors for
        "MODEL.ANCHOR_GENERATOR.SIZES": "[[160], [192], [256], [384], [512]]",
        "INPUT.MIN_SIZE_TEST": str(args.size),
        "DATASETS.TRAIN": "('made',)",
        "DATASETS.TEST": "('made',)",
    }
    return [text for pair in pairs.items() for text in pair]


def write_images(folder: Path, count: int) -> DetectionDataset:
    """Blurred noise below grain, of a COCO photo's size: 640 x 480, as JPEG files of 105 kB."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(min(count, FILES)):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        path = folder / f"{number:03d}.jpg"
        smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC)).astype(np.int16)
        grain = rng.integers(-12, 13, smooth.shape, dtype=np.int16)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)
        records.append(Record(number, str(path), 480, 640))
    names = tuple(f"class {number}" for number in range(CLASSES))
    records = [replace(records[i % FILES], image_id=i) for i in range(count)]
    return DetectionDataset("made", "", tuple(records), names, tuple(range(1, CLASSES + 1)))


def detector(args: argparse.Namespace) -> tuple[CfgNode, GeneralizedRCNN]:
    cfg = get_cfg()
    merge(cfg, load_yaml(BASE), source=BASE.name)
    merge_overrides(cfg, keys(args))
    torch.manual_seed(0)
    return cfg, build_detector(cfg)


def ours(args: argparse.Namespace, dataset: DetectionDataset) -> dict[str, Evaluation]:
    """Our evaluation, and the model alone."""
    precision = Precision(args.precision, args.device)
    cfg, model = detector(args)
    model = model.to(args.device).eval()
    mapper = build_mapper(cfg, train=False)
    images = {r.file_name: mapper(r).image for r in dataset.records[:FILES]}

    def whole(records: Sequence[Record]) -> int:
        part = replace(dataset, records=tuple(records))
        return len(predict(model, part, mapper, precision, workers=args.workers))

    @torch.no_grad()
    def alone(records: Sequence[Record]) -> int:
        found = 0
        for start in range(0, len(records), BATCH):
            with precision.autocast():
                batch = model([images[r.file_name] for r in records[start : start + BATCH]])
            found += sum(len(one.boxes) for one in batch)
        return found

    return {"ours": whole, "the model alone": alone}


def theirs(args: argparse.Namespace, dataset: DetectionDataset) -> Evaluation:
    """detectron2's test loader, model and COCOEvaluator."""
    from detectron2.config import get_cfg as get_real_cfg
    from detectron2.data import DatasetMapper, MetadataCatalog, build_detection_test_loader
    from detectron2.evaluation.coco_evaluation import instances_to_coco_json
    from detectron2.modeling import build_model

    from moco_det.plugin import add_moco_det_config

    cfg = get_real_cfg()
    add_moco_det_config(cfg)
    cfg.merge_from_other_cfg(CfgNode(load_yaml(BASE)))
    cfg.merge_from_list(keys(args))
    model = build_model(cfg).eval()
    model.load_state_dict(detector(args)[1].state_dict())
    MetadataCatalog.get("made").thing_classes = list(dataset.classes)
    mapper = DatasetMapper(cfg, is_train=False)
    precision = Precision(args.precision, args.device)

    @torch.no_grad()
    def whole(records: Sequence[Record]) -> int:
        rows = [
            {"file_name": r.file_name, "height": r.height, "width": r.width, "image_id": r.image_id}
            for r in records
        ]
        loader = build_detection_test_loader(rows, mapper=mapper, num_workers=args.workers)
        found = 0
        for batch in loader:
            with precision.autocast():
                outputs = model(batch)
            for one, output in zip(batch, outputs, strict=True):
                instances = output["instances"].to("cpu")
                found += len(instances_to_coco_json(instances, one["image_id"]))
        return found

    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure in turn, print the rows."""
    p = argparse.ArgumentParser(description="Evaluation from files to rows, in turn.")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--precision", choices=("float32", "bfloat16", "float16"), default="float32")
    p.add_argument("--images", type=int, default=256)
    p.add_argument("--size", type=int, default=800, help="INPUT.MIN_SIZE_TEST")
    p.add_argument("--workers", type=int, default=4, help="that read, of each engine")
    p.add_argument("--rounds", type=int, default=1)
    add_rows_option(p)
    args = p.parse_args(argv)
    if args.images < 1 or args.rounds < 1:
        raise InputError("--images and --rounds must be above 0")
    clock = time.perf_counter if args.device == "cuda" else time.process_time
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_images(Path(folder), args.images)
        calls = ours(args, dataset)
        if find_spec("detectron2") is None:
            print("detectron2 is not on PYTHONPATH: its row is left out")
        else:
            calls["detectron2"] = theirs(args, dataset)
        rounds: list[dict[str, float]] = []
        with tqdm(total=len(calls) * (args.rounds + 1), desc="evaluating", mininterval=1) as bar:
            for number in range(args.rounds + 1):
                records = dataset.records if number else dataset.records[: 2 * BATCH]  # a warm-up
                rounds.append({})
                found = {}
                for name, call in calls.items():
                    own = records[:: SHARE.get(name, 1) if number else 1]
                    start = clock()
                    found[name] = call(own)
                    if args.device == "cuda":
                        torch.cuda.synchronize()
                    rounds[-1][name] = 1e3 * (clock() - start) / len(own)
                    bar.update()
        print("detections", ", ".join(f"{name}: {number}" for name, number in found.items()))
    for peer in [name for name in calls if name != "ours"]:
        there, here = ([one[name] for one in rounds[1:]] for name in (peer, "ours"))
        write_row(
            args.rows,
            what="evaluation",
            case=f"Mask R-CNN R50-FPN, {args.size} px, {args.precision}",
            peer=peer,
            ours="ours",
            unit="ms per image",
            there=there,
            here=here,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
