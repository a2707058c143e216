"""The papers' detectors trained by tools/train_net.py on both engines: losses and AP side by side.

    PYTHONPATH=DETECTRON2 python benchmarks/both_engines.py --data SAMPLES [--iterations 20]

SAMPLES holds `voc2012_sample` (VOC layout) and `coco2017_sample` (annotations/, train2017/), or
folders of these names with photographs of your own. For each config of configs/ named by --stems
both engines start from one file and train on the same photographs, all of them in every batch,
every anchor a proposal and every proposal sampled, without flips: nothing is drawn, so whatever
differs is a difference of the engines or rounding. Images are small, heads and schedule are the
config's. Each engine also scores the detector that the other trained. A run that is there already
in the output folder is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from ast import literal_eval
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moco_det import zoo
from moco_det.data import load_dataset
from moco_det.data.catalog_names import coco_uri, voc_uri
from moco_det.foundation.atomic import write_text
from moco_det.foundation.errors import InputError
from moco_det.results import read_rows
from moco_det.scoring import score
from moco_det.settings.config import load_config
from moco_det.standalone import build_detector
from moco_det_tools.entry import run

TOOL = Path(__file__).resolve().parents[1] / "tools" / "train_net.py"
ENGINES = ("standalone", "detectron2")
STEMS = ("voc_R50_C4_24k", "voc_R50_DC5_24k", "coco_R50_FPN_1x", "coco_R50_C4_1x")
KEYS = {
    "MODEL.DEVICE": "cpu",
    # one anchor a cell, and every anchor a proposal: which come first does not matter then
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": "[[1.0]]",
    "MODEL.RPN.NMS_THRESH": "1.0",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": "1000",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": "1000",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "1000",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "1000",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": "2000",
    "MODEL.RPN.POSITIVE_FRACTION": "1.0",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "2000",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": "1.0",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MAX_SIZE_TRAIN": "96",
    "INPUT.MIN_SIZE_TEST": "64",
    "INPUT.MAX_SIZE_TEST": "96",
    "INPUT.RANDOM_FLIP": "none",
    "DATALOADER.NUM_WORKERS": "0",
    "DATALOADER.ASPECT_RATIO_GROUPING": "False",
    "SOLVER.BASE_LR": "0.002",
    "SOLVER.STEPS": "()",
    "SOLVER.WARMUP_ITERS": "10",
    "TEST.PRECISE_BN.NUM_ITER": "1",
    "TEST.DETECTIONS_PER_IMAGE": "20",
    "SEED": "1",
}
# res5 runs on every proposal of C4: on 7x7 cells instead of 14x14 it costs a quarter
ANCHORS = {"MODEL.ANCHOR_GENERATOR.SIZES": "[[64]]", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "7"}
PYRAMID = {"MODEL.ANCHOR_GENERATOR.SIZES": "[[16], [32], [64], [128], [256]]"}


Metrics = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """What a run left: the losses of every iteration, the metrics of its row, its detections.

    `elsewhere` are the metrics of the same detector on the other engine.
    """

    losses: list[dict[str, float]]
    metrics: Metrics
    detections: list[dict[str, Any]]
    elsewhere: Metrics | None = None


def photographs(stem: str, samples: Path, folder: Path, number: int) -> str:
    """The name of a data set of the first few images with 2 to 4 objects, made in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if stem.startswith("voc"):
        source = (samples / "voc2012_sample").resolve()
        records = load_dataset(voc_uri(source, "train")).records
        chosen = [Path(r.file_name).stem for r in records if 1 < len(r.annotations) < 5][:number]
        require(chosen, number, source)
        for name in ("JPEGImages", "Annotations"):
            if not (folder / name).exists():
                (folder / name).symlink_to(source / name)
        (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        write_text(folder / "ImageSets" / "Main" / "few.txt", "\n".join(chosen) + "\n")
        return voc_uri(folder, "few")
    source = (samples / "coco2017_sample").resolve()
    file = source / "annotations" / "instances_train2017.json"
    if not file.is_file():
        raise InputError(f"{file} does not exist: --data names the folder of both samples")
    content = json.loads(file.read_text(encoding="utf-8"))
    # large enough to have a mask at 64 pixels, and no crowds: C4 crops polygons
    objects = [a for a in content["annotations"] if not a["iscrowd"] and a["area"] > 2000]
    counts = {i["id"]: sum(a["image_id"] == i["id"] for a in objects) for i in content["images"]}
    images = [i for i in content["images"] if 1 < counts[i["id"]] < 5][:number]
    require(images, number, source)
    ids = {image["id"] for image in images}
    few = {
        **content,
        "images": images,
        "annotations": [a for a in objects if a["image_id"] in ids],
    }
    write_text(folder / "few.json", json.dumps(few))
    return coco_uri(folder / "few.json", source / "train2017")


def require(found: Sequence[object], number: int, source: Path) -> None:
    if len(found) < number:
        raise InputError(
            f"{source} has {len(found)} images with 2 to 4 objects, {number} are asked for: "
            "lower --photographs"
        )


def settings(stem: str, data: str, *, images: int, iterations: int) -> dict[str, str]:
    """The config keys that both engines are given over the stem's file."""
    return {
        **KEYS,
        **(PYRAMID if "FPN" in stem else ANCHORS),
        "SOLVER.IMS_PER_BATCH": str(images),
        "SOLVER.MAX_ITER": str(iterations),
        "DATASETS.TRAIN": repr((data,)),
        "DATASETS.TEST": repr((data,)),
    }


def arguments(keys: dict[str, str]) -> list[str]:
    """KEY VALUE KEY VALUE ..."""
    return [text for pair in keys.items() for text in pair]


def write_start(file: str, keys: dict[str, str], path: Path) -> None:
    """A checkpoint of the whole detector for both engines to start from."""
    torch.manual_seed(3)
    model = build_detector(load_config(file, arguments(keys)))
    calm(model)
    torch.save({"model": model.state_dict()}, path)


def calm(model: nn.Module) -> None:
    """Let every block start near the identity (Goyal et al. 2017, section 5.1).

    The gradients of a ResNet-50 that starts all random are so steep that rounding alone, which the
    engines' memory layouts change, decides the second step.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("conv3.norm.weight"):
                parameter.fill_(0.1)


def read_run(output: Path) -> Run:
    """The run that left its files in a folder."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [
        {key: value for key, value in line.items() if "loss" in key}
        for line in lines
        if "total_loss" in line
    ]
    (row,) = read_rows([output]).rows
    detections = json.loads((output / "predictions.json").read_text())
    return Run(losses, row.data["metrics"], detections)


def train(engine: str, file: str, keys: dict[str, str], output: Path) -> Run:
    """The run of an engine, by the tool."""
    if not (output / "results.jsonl").is_file():
        resume = ["--resume"] if (output / "last_checkpoint").is_file() else []
        call_tool(engine, file, keys, output, *resume)
    return read_run(output)


def score_elsewhere(engine: str, file: str, keys: dict[str, str], weights: Path) -> Metrics:
    """The metrics of a detector that the other engine trained."""
    output = weights.parent.with_name(f"{weights.parent.name}_by_{engine}")
    if not (output / "predictions.json").is_file():
        call_tool(engine, file, {**keys, "MODEL.WEIGHTS": str(weights)}, output, "--eval-only")
    rows = json.loads((output / "predictions.json").read_text(encoding="utf-8"))
    (name,) = literal_eval(keys["DATASETS.TEST"])
    metrics: Metrics = score(load_dataset(name), rows, with_masks="coco" in Path(file).stem)
    return metrics


def call_tool(engine: str, file: str, keys: dict[str, str], output: Path, *options: str) -> None:
    """tools/train_net.py: its bar is on the terminal, the rest in a log beside the output."""
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(TOOL), "--engine", engine, "--config-file", file, *options]
    print(f"{output.parent.name}: {output.name}", file=sys.stderr)
    with open(output.with_suffix(".log"), "w", encoding="utf-8") as log:
        code = subprocess.call(
            [*command, *arguments({**keys, "OUTPUT_DIR": str(output)})], stdout=log
        )
    if code:
        raise InputError(f"{engine} ended with {code}: {log.name} says why")


def start_of(
    stem: str, samples: Path, folder: Path, *, number: int, iterations: int
) -> tuple[str, dict[str, str]]:
    """The config file and keys of a stem's runs; data and first weights are made in the folder."""
    file = zoo.get_config_file(f"{stem}_random")
    data = photographs(stem, samples, folder / "data", number)
    keys = settings(stem, data, images=number, iterations=iterations)
    if not (folder / "start.pth").is_file():
        write_start(file, keys, folder / "start.tmp")
        os.replace(folder / "start.tmp", folder / "start.pth")
    return file, {**keys, "MODEL.WEIGHTS": str(folder / "start.pth")}


def both(stem: str, samples: Path, output: Path, *, number: int, iterations: int) -> dict[str, Run]:
    """A stem's run on each engine."""
    folder = output / f"{stem}_{number}x{iterations}"
    file, keys = start_of(stem, samples, folder, number=number, iterations=iterations)
    runs = {engine: train(engine, file, keys, folder / engine) for engine in ENGINES}
    return {
        engine: replace(
            runs[engine],
            elsewhere=score_elsewhere(other, file, keys, folder / engine / "model_final.pth"),
        )
        for engine, other in zip(ENGINES, reversed(ENGINES), strict=True)
    }


def report(runs: dict[str, dict[str, Run]], shown: int = 20) -> str:
    """Markdown tables: total losses of the first iterations; AP on either engine."""
    heads = [f"{stem} {engine}" for stem in runs for engine in ENGINES]
    lines = [f"| iteration | {' | '.join(heads)} |", "|--:|" + "--:|" * len(heads)]
    steps = min(shown, *(len(run.losses) for pair in runs.values() for run in pair.values()))
    for step in range(steps):
        cells = [pair[e].losses[step]["total_loss"] for pair in runs.values() for e in ENGINES]
        lines.append(f"| {step} | {' | '.join(f'{cell:.4f}' for cell in cells)} |")
    lines.append("")
    lines += [
        f"{stem}: total losses differ by at most {largest_difference(pair, min(5, steps)):.1e} of "
        f"themselves in the first 5 iterations, {largest_difference(pair, steps):.1e} in {steps}."
        for stem, pair in runs.items()
    ]
    keys = ("AP", "AP50")
    columns = [f"{key} on {engine}" for key in keys for engine in ENGINES]
    lines += ["", f"| config | trained on | iterations | metric | {' | '.join(columns)} |"]
    lines.append("|---|---|--:|---|" + "--:|" * len(columns))
    for stem, pair in runs.items():
        for engine, one in pair.items():
            for metric, own in one.metrics.items():
                other = (one.elsewhere or {}).get(metric, {})
                tables = [own if e == engine else other for e in ENGINES]
                values = [table.get(key) for key in keys for table in tables]
                cells = ["-" if value is None else f"{value:.2f}" for value in values]
                where = f"{stem} | {engine} | {len(one.losses)} | {metric}"
                lines.append(f"| {where} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def largest_difference(pair: dict[str, Run], steps: int) -> float:
    """The largest relative difference of any total loss of the first iterations."""
    ours, theirs = (pair[engine].losses[:steps] for engine in ENGINES)
    return max(
        abs(a["total_loss"] - b["total_loss"]) / b["total_loss"]
        for a, b in zip(ours, theirs, strict=True)
    )


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True, help="the folder of both samples")
    p.add_argument("--stems", nargs="+", default=STEMS, help="configs, without their arm")
    p.add_argument("--photographs", type=int, default=2, help="images, all in every batch")
    p.add_argument("--iterations", type=int, default=20)
    p.add_argument("-o", "--output", type=Path, default=Path("runs/both_engines"))
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Make the runs that are missing and print the tables; they are in tables.md as well."""
    args = parser().parse_args(argv)
    if args.photographs < 1 or args.iterations < 1:
        raise InputError("--photographs and --iterations must be above 0")
    runs = {
        stem: both(
            stem, args.data, args.output, number=args.photographs, iterations=args.iterations
        )
        for stem in args.stems
    }
    text = report(runs)
    write_text(args.output / "tables.md", text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
