"""A detector's training step and inference: real detectron2 against our engine, in turn.

    PYTHONPATH=DETECTRON2 python benchmarks/detector_steps.py [--detectors fpn c4 dc5]

Both have one config of configs/base (ResNet-50), the same weights, images, objects and sampled
regions; the losses of the first step are held against each other before anything is timed. A step
is forward, backward and SGD. Time is the process's CPU time, which other work on the machine
lengthens less than the clock's; a ratio is taken within a round. With `--memory` each engine takes
one step in a process of its own, and its peak resident memory is printed. It needs detectron2, as
tests under pytest.mark.detectron2 do.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from tqdm import tqdm

from moco_det.config import check, get_cfg, load_yaml, merge, merge_overrides
from moco_det.errors import InputError
from moco_det.standalone.build import build_detector, build_solver
from moco_det.standalone.precision import Precision
from moco_det.standalone.rpn import Targets
from moco_det_tools.entry import run

BASES = Path(__file__).resolve().parents[1] / "configs" / "base"
BASE_OF = {"fpn": "RCNN_FPN", "c4": "RCNN_C4", "dc5": "RCNN_DC5"}
KEYS = [
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN"),
    *("MODEL.DILATED_C5.NORM", "BN", "MODEL.ROI_HEADS.NUM_CLASSES", "20"),
    *("DATASETS.TRAIN", "('train',)", "DATASETS.TEST", "('test',)", "SOLVER.BASE_LR", "0.001"),
]
# of the relative difference of two losses; bfloat16 has 8 bits
LIMITS = {"float32": 1e-3, "bfloat16": 5e-2}


@dataclass
class Inputs:
    """Images, and the objects (boxes, classes, polygons) of each."""

    images: list[Tensor]
    boxes: list[Tensor]
    classes: list[Tensor]
    polygons: list[list[list[np.ndarray]]]


@dataclass
class Engine:
    """``train()`` takes a step and returns its losses; ``detect()`` counts its detections."""

    train: Callable[[], dict[str, float]]
    detect: Callable[[], int]


def made_inputs(size: int, batch: int) -> Inputs:
    """Images of size x size with eight objects each, octagons in their boxes."""
    random = torch.Generator().manual_seed(0)
    found = Inputs([], [], [], [])
    for _ in range(batch):
        coarse = torch.rand(3, size // 16 + 1, size // 16 + 1, generator=random)
        fine = coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :size, :size]
        found.images.append((200 * fine + 55 * torch.rand(3, size, size, generator=random)).round())
        low = torch.rand(8, 2, generator=random) * 0.6 * size
        side = (0.08 + 0.3 * torch.rand(8, 2, generator=random)) * size
        found.boxes.append(torch.cat([low, low + side], dim=1))
        found.classes.append(torch.randint(0, 20, (8,), generator=random))
        angles = np.arange(8) * np.pi / 4
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) / 2 + 0.5
        outlines = low.numpy()[:, None] + circle * side.numpy()[:, None]
        found.polygons.append([[outline.reshape(-1).astype(np.float64)] for outline in outlines])
    return found


def keys_of(name: str, more: Sequence[str]) -> list[str]:
    masks = ["MODEL.MASK_ON", str(name == "fpn")]
    return [*KEYS, *masks, *more]


def ours(name: str, inputs: Inputs, more: Sequence[str], precision: Precision) -> Engine:
    cfg = get_cfg()
    merge(cfg, load_yaml(BASES / f"{BASE_OF[name]}.yaml"), source=name)
    merge_overrides(cfg, keys_of(name, more))
    check(cfg)
    torch.manual_seed(0)
    model = build_detector(cfg, channels_last=True)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    solver = build_solver(cfg, model)
    targets = [
        Targets(boxes, classes, polygons if cfg.MODEL.MASK_ON else None)
        for boxes, classes, polygons in zip(
            inputs.boxes, inputs.classes, inputs.polygons, strict=True
        )
    ]

    def train() -> dict[str, float]:
        model.train()
        torch.manual_seed(1)
        with precision.autocast():
            losses = model(inputs.images, targets)
        solver.optimizer.zero_grad()
        sum(losses.values()).backward()
        solver.optimizer.step()
        return {key: loss.item() for key, loss in losses.items()}

    def detect() -> int:
        model.eval()
        with torch.no_grad(), precision.autocast():
            return sum(len(found.boxes) for found in model(inputs.images))

    return Engine(train, detect)


def theirs(name: str, inputs: Inputs, more: Sequence[str]) -> Engine:
    try:
        from detectron2.config import get_cfg as get_real_cfg
        from detectron2.modeling import build_model
        from detectron2.solver import build_optimizer
        from detectron2.structures import Boxes, Instances, PolygonMasks
        from detectron2.utils.events import EventStorage
    except ImportError as error:
        raise InputError(f"detectron2 is needed ({error}): set PYTHONPATH to a checkout") from None
    from moco_det.plugin import add_moco_det_config

    cfg = get_real_cfg()
    add_moco_det_config(cfg)
    cfg.merge_from_other_cfg(CfgNode(load_yaml(BASES / f"{BASE_OF[name]}.yaml")))
    cfg.merge_from_list(keys_of(name, more))
    model = build_model(cfg)
    # the weights of ours, under the same names
    torch.manual_seed(0)
    own = get_cfg()
    merge(own, load_yaml(BASES / f"{BASE_OF[name]}.yaml"), source=name)
    merge_overrides(own, keys_of(name, more))
    model.load_state_dict(build_detector(own).state_dict())
    optimizer = build_optimizer(cfg, model)
    rows = []
    for image, boxes, classes, polygons in zip(
        inputs.images, inputs.boxes, inputs.classes, inputs.polygons, strict=True
    ):
        instances = Instances(image.shape[-2:])
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = classes
        if cfg.MODEL.MASK_ON:
            instances.gt_masks = PolygonMasks(polygons)
        rows.append({"image": image, "instances": instances})

    def train() -> dict[str, float]:
        model.train()
        torch.manual_seed(1)
        with EventStorage():
            losses = model(rows)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        return {key: loss.item() for key, loss in losses.items()}

    def detect() -> int:
        model.eval()
        with torch.no_grad():
            found = model.inference([{"image": i} for i in inputs.images], do_postprocess=False)
        return sum(len(one) for one in found)

    return Engine(train, detect)


def compare(name: str, args: argparse.Namespace) -> None:
    """One detector: the check, then the rounds."""
    inputs = made_inputs(args.size, args.batch)
    engines = {"detectron2": theirs(name, inputs, args.keys)}
    for precision in args.precision:
        engines[precision] = ours(name, inputs, args.keys, Precision(precision, "cpu"))
    seconds: dict[str, list[dict[str, float]]] = {"training step": [], "inference": []}
    work = (len(seconds) * args.rounds + 1) * len(engines)
    with tqdm(total=work, desc=name, unit="call", mininterval=1) as bar:
        first = {}
        for title, engine in engines.items():  # also the first touch of memory and kernels
            first[title] = engine.train()
            bar.update()
        for title in args.precision:
            pairs = {key: (loss, first[title][key]) for key, loss in first["detectron2"].items()}
            if title == "bfloat16":  # other proposals are sampled: only the total can be held
                there, here = zip(*pairs.values(), strict=True)
                pairs = {"the total loss": (sum(there), sum(here))}
            for key, (there_, here_) in pairs.items():
                if abs(here_ - there_) > LIMITS[title] * max(abs(there_), 0.1):
                    raise InputError(f"{name}, {title}: {key} is {there_} there and {here_} here")
        for what, rounds in seconds.items():
            for _ in range(args.rounds):
                taken = {}
                for title, engine in engines.items():
                    clock = time.process_time()
                    engine.train() if what == "training step" else engine.detect()
                    taken[title] = time.process_time() - clock
                    bar.update()
                rounds.append(taken)
    for what, rounds in seconds.items():
        for title in args.precision:
            there, here = (statistics.median(r[t] for r in rounds) for t in ("detectron2", title))
            ratios = sorted(r["detectron2"] / r[title] for r in rounds)
            print(
                f"{name:4} {what:14} detectron2 {there:6.2f} s   ours, {title} {here:6.2f} s   "
                f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f}..{ratios[-1]:.2f})",
                flush=True,
            )


def peak_memory(name: str, engine: str, args: argparse.Namespace) -> float:
    """MiB that a process of its own reaches in one step."""
    command = [sys.executable, __file__, "--only", engine, "--detectors", name]
    command += ["--precision", args.precision[0], "--size", str(args.size)]
    command += ["--batch", str(args.batch), *args.keys]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(result.stdout.splitlines()[-1])["mib"])


def main(argv: Sequence[str] | None = None) -> int:
    """Print seconds and ratios, or memory."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    p.add_argument("--detectors", nargs="+", choices=BASE_OF, default=list(BASE_OF))
    p.add_argument("--size", type=int, default=320, help="pixels of a side")
    p.add_argument("--batch", type=int, default=2, help="images of a step")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--precision", nargs="+", choices=LIMITS, default=list(LIMITS), help="of ours")
    p.add_argument("--memory", action="store_true", help="peak memory instead of time")
    p.add_argument("--only", choices=("ours", "detectron2"), help=argparse.SUPPRESS)
    p.add_argument("keys", nargs="*", metavar="KEY VALUE", help="config overrides for both")
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.only:
        inputs = made_inputs(args.size, args.batch)
        name = args.detectors[0]
        if args.only == "detectron2":
            engine = theirs(name, inputs, args.keys)
        else:
            engine = ours(name, inputs, args.keys, Precision(args.precision[0], "cpu"))
        engine.train()
        scale = 1024 if sys.platform != "darwin" else 1024**2
        print(json.dumps({"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale}))
        return 0
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {args.batch} images of "
        f"{args.size} px, detectron2 in float32"
    )
    for name in args.detectors:
        if args.memory:
            there, here = (peak_memory(name, e, args) for e in ("detectron2", "ours"))
            print(f"{name:4} peak memory    detectron2 {there:.0f} MiB   ours {here:.0f} MiB")
        else:
            compare(name, args)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
