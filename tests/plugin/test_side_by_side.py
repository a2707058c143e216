"""The papers' detectors from one checkpoint on photographs: both engines train and score alike.

Nothing is left to chance: both images are in every batch, every anchor is a proposal and every
proposal is sampled, and the detector starts from one file. What is compared is then the whole of
training: reading, resizing, targets, losses, gradients, learning rate, weight decay, BN, AP.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from moco_det import zoo
from moco_det.config import load_config
from moco_det.data import load_dataset
from moco_det.results import read_rows
from moco_det.standalone import build_detector
from moco_det_tools.entry import run
from moco_det_tools.train_net import main

pytest.importorskip("detectron2")
pytestmark = [pytest.mark.detectron2, pytest.mark.slow]

ITERATIONS = int(os.environ.get("MOCO_DET_ITERATIONS", "4"))
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
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.BASE_LR": "0.002",
    "SOLVER.MAX_ITER": str(ITERATIONS),
    "SOLVER.STEPS": "()",
    "SOLVER.WARMUP_ITERS": "10",
    "TEST.PRECISE_BN.NUM_ITER": "1",
    "TEST.DETECTIONS_PER_IMAGE": "20",
    "SEED": "1",
}
# res5 runs on every proposal of C4: on 7x7 cells instead of 14x14 it costs a quarter
ANCHORS = {"MODEL.ANCHOR_GENERATOR.SIZES": "[[64]]", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "7"}
PYRAMID = {"MODEL.ANCHOR_GENERATOR.SIZES": "[[16], [32], [64], [128], [256]]"}


@dataclass
class Run:
    losses: list[dict[str, float]]
    metrics: dict[str, dict[str, Any]]
    detections: list[dict[str, Any]]


def two_photographs(stem: str, data_root: Path, folder: Path) -> str:
    """The name of a data set of two images with objects, apart from their neighbours."""
    if stem.startswith("voc"):
        source = data_root / "voc2012_sample"
        records = load_dataset(f"voc://{source}?split=train").records
        for name in ("JPEGImages", "Annotations"):
            (folder / name).symlink_to(source / name)
        (folder / "ImageSets" / "Main").mkdir(parents=True)
        chosen = [Path(r.file_name).stem for r in records if 1 < len(r.annotations) < 5][:2]
        (folder / "ImageSets" / "Main" / "two.txt").write_text("\n".join(chosen) + "\n")
        return f"voc://{folder}?split=two"
    source = data_root / "coco2017_sample"
    content = json.loads((source / "annotations" / "instances_train2017.json").read_text())
    objects = [a for a in content["annotations"] if not a["iscrowd"] and a["area"] > 2000]
    counts = {i["id"]: sum(a["image_id"] == i["id"] for a in objects) for i in content["images"]}
    images = [i for i in content["images"] if 1 < counts[i["id"]] < 5][:2]
    ids = {image["id"] for image in images}
    objects = [a for a in objects if a["image_id"] in ids]
    (folder / "two.json").write_text(
        json.dumps({**content, "images": images, "annotations": objects})
    )
    return f"coco://{folder}/two.json?images={source}/train2017"


def calm(model: nn.Module) -> None:
    """Let every block start near the identity (Goyal et al. 2017, section 5.1).

    The gradients of a ResNet-50 that starts all random are so steep that rounding alone, which the
    engines' memory layouts change, decides the second step.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("conv3.norm.weight"):
                parameter.fill_(0.1)


def train(engine: str, file: str, keys: dict[str, str], output: Path) -> Run:
    keys = {**keys, "OUTPUT_DIR": str(output)}
    argv = ["--engine", engine, "--config-file", file, *[x for kv in keys.items() for x in kv]]
    assert run(lambda: main(argv)) == 0
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [
        {key: value for key, value in line.items() if "loss" in key}
        for line in lines
        if "total_loss" in line
    ]
    (row,) = read_rows([output]).rows
    detections = json.loads((output / "predictions.json").read_text())
    return Run(losses, row.data["metrics"], detections)


@pytest.mark.parametrize("stem", STEMS)
def test_losses_detections_and_ap_are_the_same(
    stem: str, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = zoo.get_config_file(f"{stem}_random")
    (tmp_path / "data").mkdir()
    data = two_photographs(stem, data_root, tmp_path / "data")
    torch.manual_seed(3)
    keys = KEYS | (PYRAMID if "FPN" in stem else ANCHORS)
    model = build_detector(load_config(file, [x for kv in keys.items() for x in kv]))
    calm(model)
    torch.save({"model": model.state_dict()}, tmp_path / "start.pth")
    keys |= {"MODEL.WEIGHTS": str(tmp_path / "start.pth")}
    keys |= {"DATASETS.TRAIN": repr((data,)), "DATASETS.TEST": repr((data,))}
    ours, theirs = (
        train(engine, file, keys, tmp_path / engine) for engine in ("standalone", "detectron2")
    )
    with capsys.disabled():
        print_beside(stem, ours, theirs)
    assert len(ours.losses) == len(theirs.losses) == ITERATIONS
    for step, (mine, other) in enumerate(zip(ours.losses, theirs.losses, strict=True)):
        assert mine.keys() == other.keys()
        if step < 4:  # rounding grows from step to step in a network that starts random
            assert mine == pytest.approx(other, rel=1e-3, abs=1e-5), f"iteration {step}"
    for ruler in ours.metrics.keys() | theirs.metrics.keys():
        mine, other = ours.metrics[ruler]["AP50"], theirs.metrics[ruler]["AP50"]
        assert mine == pytest.approx(other, abs=1.0), ruler
    assert len(ours.detections) == len(theirs.detections) > 0


def print_beside(stem: str, ours: Run, theirs: Run) -> None:
    print(f"\n{stem}: total_loss on standalone | on detectron2")
    for step, (mine, other) in enumerate(zip(ours.losses, theirs.losses, strict=True)):
        print(f"  {step:2d}  {mine['total_loss']:.5f} | {other['total_loss']:.5f}")
    for ruler, table in ours.metrics.items():
        cells = [
            f"{key} {table[key]:.2f} | {theirs.metrics[ruler][key]:.2f}" for key in ("AP", "AP50")
        ]
        print(f"  {ruler}: {', '.join(cells)}")
