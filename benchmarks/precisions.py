"""One trained detector scored in float32, bfloat16 and float16, by our engine and detectron2.

    PYTHONPATH=DETECTRON2 python benchmarks/precisions.py [--device cuda] [--steps 200]

The demo's detector (Mask R-CNN, half-width ResNet-18-FPN) is trained on 100 painted scenes from the
shipped supervised encoder; then both engines take its weights and find the objects of the same
images, detectron2 under torch.autocast, and one scorer gives AP. Images are the test scenes, and
the same scenes side by side in long strips: there x reaches 768, where a box in bfloat16 lies on a
grid of 4 pixels. Without detectron2 its rows are left out.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image
from rows import add_rows_option, write_row
from tqdm import tqdm

from moco_det.data import Annotation, DetectionDataset, Record, load_dataset, read_image
from moco_det.data.scenes import write_scenes
from moco_det.foundation.errors import InputError
from moco_det.foundation.precision import Precision
from moco_det.runs.quickstart.data_sets import LABELLED, PAINTED
from moco_det.runs.quickstart.encoders import SHIPPED
from moco_det.runs.run import run as train
from moco_det.scoring import score
from moco_det.settings.config import load_config
from moco_det.settings.engine import RunOptions
from moco_det.standalone import StandaloneEngine, build_detector
from moco_det.standalone.build import build_mapper
from moco_det.standalone.evaluate import BATCH, predict
from moco_det.weights.convert import convert
from moco_det.weights.loading import load_weights
from moco_det_tools.entry import run

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quick" / "demo_R18_FPN.yaml"
SIDE = 96
STRIP = 8  # scenes
Detect = Callable[[DetectionDataset, Precision], list[dict[str, Any]]]


def trained(args: argparse.Namespace, folder: Path) -> tuple[list[str], DetectionDataset]:
    """The config keys of a detector that has been trained, and the test scenes."""
    paths = write_scenes(
        folder / "scenes",
        seed=0,
        unlabelled=0,
        train=LABELLED,
        test=args.images,
        size=SIDE,
        classes=PAINTED,
        objects=(1, 4),
    )
    convert(SHIPPED / "supervised.pth", folder / "encoder.pkl")
    keys = {
        "MODEL.DEVICE": args.device,
        "MODEL.WEIGHTS": str(folder / "encoder.pkl"),
        "MODEL.ROI_HEADS.NUM_CLASSES": str(len(PAINTED)),
        # enough for the objects of a strip
        "MODEL.RPN.PRE_NMS_TOPK_TEST": "1000",
        "MODEL.RPN.POST_NMS_TOPK_TEST": "1000",
        "TEST.DETECTIONS_PER_IMAGE": "100",
        "INPUT.MAX_SIZE_TEST": str(STRIP * SIDE),
        "DATALOADER.NUM_WORKERS": "4" if args.device == "cuda" else "0",
        "DATASETS.TRAIN": repr((paths.train,)),
        "DATASETS.TEST": repr((paths.test,)),
        "SOLVER.MAX_ITER": str(args.steps),
        "SOLVER.STEPS": repr((args.steps * 3 // 4, args.steps * 9 // 10)),
        "SOLVER.WARMUP_ITERS": str(max(1, args.steps * 3 // 20)),
        "OUTPUT_DIR": str(folder / "run"),
        "SEED": "0",
    }
    train(load_config(CONFIG, words(keys)), RunOptions(CONFIG.name), StandaloneEngine())
    final = str(folder / "run" / "model_final.pth")
    return words({**keys, "MODEL.WEIGHTS": final}), load_dataset(paths.test)


def words(keys: dict[str, str]) -> list[str]:
    return [text for pair in keys.items() for text in pair]


def strips(scenes: DetectionDataset, folder: Path) -> DetectionDataset:
    """The scenes side by side, so many in an image."""
    folder.mkdir()
    records = []
    for number in range(len(scenes) // STRIP):
        parts = scenes.records[number * STRIP : (number + 1) * STRIP]
        path = folder / f"{number:03d}.png"
        images = [read_image(part.file_name, "RGB") for part in parts]
        Image.fromarray(np.concatenate(images, axis=1)).save(path)
        objects = [moved(a, i * SIDE) for i, part in enumerate(parts) for a in part.annotations]
        records.append(Record(number, str(path), SIDE, STRIP * SIDE, tuple(objects)))
    return replace(scenes, records=tuple(records))


def moved(one: Annotation, right: int) -> Annotation:
    x0, y0, x1, y1 = one.bbox
    assert isinstance(one.segmentation, list)
    polygons = [
        [value + right * (place % 2 == 0) for place, value in enumerate(polygon)]
        for polygon in one.segmentation
    ]
    return replace(one, bbox=(x0 + right, y0, x1 + right, y1), segmentation=polygons)


def ours(cfg: CfgNode) -> Detect:
    model = build_detector(cfg)
    load_weights(cfg, model)
    model.to(cfg.MODEL.DEVICE)
    mapper = build_mapper(cfg, train=False)
    return lambda dataset, precision: predict(model, dataset, mapper, precision)


def theirs(keys: Sequence[str]) -> Detect:
    """detectron2's model over the images that our mapper gives, the same as its own does."""
    from moco_det.plugin.config import load_config as load_real_config
    from moco_det.plugin.evaluator import Evaluator
    from moco_det.plugin.trainer import build_detector as build_real_detector

    cfg = load_real_config(CONFIG, keys)
    model = build_real_detector(cfg)
    load_weights(cfg, model)
    model.eval()
    mapper = build_mapper(load_config(CONFIG, keys), train=False)

    @torch.no_grad()
    def detect(dataset: DetectionDataset, precision: Precision) -> list[dict[str, Any]]:
        found = Evaluator(dataset, Path(), with_masks=True)
        starts = range(0, len(dataset), BATCH)
        for start in tqdm(starts, desc="detectron2", unit="batch", mininterval=1):
            inputs = [
                {
                    "image": mapper(record).image,
                    "height": record.height,
                    "width": record.width,
                    "image_id": record.image_id,
                }
                for record in dataset.records[start : start + BATCH]
            ]
            with precision.autocast():
                outputs = model(inputs)
            for one in outputs:
                one["instances"].scores = one["instances"].scores.float()  # numpy has no bfloat16
            found.process(inputs, outputs)
        return found.rows

    return detect


def main(argv: Sequence[str] | None = None) -> int:
    """Train, score every combination, print the rows."""
    p = argparse.ArgumentParser(description="AP of one detector in every precision.")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument(
        "--precisions",
        nargs="+",
        choices=("bfloat16", "float16"),
        help="besides float32 (default both, on a CPU bfloat16)",
    )
    p.add_argument("--steps", type=int, default=200, help="of training")
    p.add_argument("--images", type=int, default=160, help="test scenes")
    add_rows_option(p)
    args = p.parse_args(argv)
    if args.steps < 4 or args.images < STRIP:
        raise InputError(f"--steps must be at least 4 and --images at least {STRIP}")
    names = args.precisions or ["bfloat16", "float16"][: 2 if args.device == "cuda" else 1]
    with tempfile.TemporaryDirectory() as folder:
        keys, scenes = trained(args, Path(folder))
        engines = {"ours": ours(load_config(CONFIG, keys))}
        if find_spec("detectron2") is None:
            print("detectron2 is not on PYTHONPATH: its rows are left out")
        else:
            engines["detectron2"] = theirs(keys)
        cases = {"scenes": scenes, "strips": strips(scenes, Path(folder) / "strips")}
        for case, dataset in cases.items():
            for engine, detect in engines.items():
                metrics = {
                    name: score(
                        dataset, detect(dataset, Precision(name, args.device)), with_masks=True
                    )
                    for name in ("float32", *names)
                }
                for name in names:
                    for kind in ("bbox", "segm"):
                        exact, found = (metrics[n][kind]["AP"] for n in ("float32", name))
                        if not exact:
                            raise InputError("the detector finds nothing: raise --steps")
                        write_row(
                            args.rows,
                            what="precision",
                            case=f"{case}, {kind} ({found - exact:+.2f})",
                            peer=f"{engine} in float32",
                            ours=f"{engine} in {name}",
                            unit="AP",
                            there=[exact],
                            here=[found],
                        )
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
