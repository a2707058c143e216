"""A detector's training step and inference: real detectron2 against our engine, in turn.

    PYTHONPATH=DETECTRON2 python benchmarks/detector_steps.py [--detectors fpn c4 dc5 timm]
    PYTHONPATH=DETECTRON2 python benchmarks/detector_steps.py --device cuda --size 800

Both have one config of configs/base (ResNet-50; timm: convnext_tiny, or a MODEL.TIMM.NAME behind
the options, as the backbone of both below an FPN), the same weights, images, objects and sampled
regions; the losses of the first step are held against each other before anything is timed. A step
is forward, backward and SGD. With `--loader` images and objects come from files by the loader of
each engine, with as many workers. Time is the process's CPU time, which other work on the machine
lengthens less than the clock's; a ratio is taken within a round. On a GPU it is the clock's, until
the device is done, and beside it that between two CUDA events around the call; detectron2 then
runs in ours' precision, on a CPU always in float32. There ours is timed with SOLVER.CUDA_GRAPHS
too, and beside both "convolutions alone": forward and backward of backbone, RPN head and second
stage in one graph, on regions that are given. With `--memory` each engine takes one step in
a process of its own, and its peak resident memory is printed. It needs detectron2, as tests under
pytest.mark.detectron2 do.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bare_convolutions import convolutions_alone
from fvcore.common.config import CfgNode
from made_inputs import Inputs, made_inputs
from rows import add_rows_option, write_row
from tqdm import tqdm

from moco_det.data import Record
from moco_det.foundation.errors import InputError
from moco_det.foundation.precision import Precision
from moco_det.settings.config import check, get_cfg, load_yaml, merge, merge_overrides
from moco_det.standalone.build import build_detector, build_mapper, build_solver
from moco_det.standalone.loader import BatchStream, training_loader
from moco_det.standalone.mapper import Sample
from moco_det.standalone.targets import Targets
from moco_det_tools.entry import run

Call = Callable[[], object]
BASES = Path(__file__).resolve().parents[1] / "configs" / "base"
BASE_OF = {"fpn": "RCNN_FPN", "c4": "RCNN_C4", "dc5": "RCNN_DC5", "timm": "RCNN_FPN"}
TIMM = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "convnext_tiny"]
KEYS = [
    *("MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN"),
    *("MODEL.DILATED_C5.NORM", "BN", "MODEL.ROI_HEADS.NUM_CLASSES", "20"),
    *("DATASETS.TRAIN", "('train',)", "DATASETS.TEST", "('test',)", "SOLVER.BASE_LR", "0.001"),
]
# of the relative difference of two losses on a CPU; bfloat16 has 8 bits
LIMITS = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}


@dataclass
class Engine:
    """``train()`` takes a step and returns its losses; ``detect()`` counts its detections."""

    train: Callable[[], dict[str, float]]
    detect: Call


def keys_of(name: str, device: str, more: Sequence[str]) -> list[str]:
    chosen = ["MODEL.DEVICE", device, "MODEL.MASK_ON", str(name in ("fpn", "timm"))]
    return [*KEYS, *chosen, *(TIMM if name == "timm" else []), *more]


def config_of(name: str, device: str, more: Sequence[str]) -> CfgNode:
    """The standalone engine's config of a detector."""
    cfg = get_cfg()
    merge(cfg, load_yaml(BASES / f"{BASE_OF[name]}.yaml"), source=name)
    merge_overrides(cfg, keys_of(name, device, more))
    check(cfg)
    return cfg


def ours(
    name: str,
    inputs: Inputs,
    more: Sequence[str],
    precision: Precision,
    *,
    records: Sequence[Record] = (),
    workers: int = 0,
) -> Engine:
    cfg = config_of(name, precision.device, more)
    torch.manual_seed(0)
    model = build_detector(cfg).to(precision.device)
    solver = build_solver(cfg, model)
    scaler = torch.amp.GradScaler(precision.device, enabled=precision.needs_scaler)
    if cfg.SOLVER.CUDA_GRAPHS:
        model.capture()
    targets = [
        Targets(boxes, classes, polygons if cfg.MODEL.MASK_ON else None)
        for boxes, classes, polygons in zip(
            inputs.boxes, inputs.classes, inputs.polygons, strict=True
        )
    ]

    batches: Iterator[list[Sample]] = iter(())
    if records:
        stream = BatchStream(records, batch_size=len(inputs.images), seed=0)
        mapper = build_mapper(cfg, train=True)
        batches = iter(training_loader(records, mapper, stream, workers=workers))

    def train() -> dict[str, float]:
        model.train()
        images, objects = inputs.images, targets
        if records:
            samples = next(batches)
            images = [s.image for s in samples]
            objects = [s.targets for s in samples if s.targets is not None]
        torch.manual_seed(1)
        with precision.autocast():
            losses = model(images, objects)
        solver.optimizer.zero_grad()
        scaler.scale(sum(losses.values())).backward()
        scaler.step(solver.optimizer)
        scaler.update()
        values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
        return dict(zip(losses, values, strict=True))

    def detect() -> int:
        model.eval()
        with torch.no_grad(), precision.autocast():
            return sum(len(found.boxes) for found in model(inputs.images))

    return Engine(train, detect)


def theirs(
    name: str,
    inputs: Inputs,
    more: Sequence[str],
    precision: Precision,
    *,
    records: Sequence[Record] = (),
    workers: int = 0,
) -> Engine:
    try:
        from detectron2.config import get_cfg as get_real_cfg
        from detectron2.data import DatasetMapper, build_detection_train_loader
        from detectron2.modeling import build_model
        from detectron2.solver import build_optimizer
        from detectron2.structures import Boxes, BoxMode, Instances, PolygonMasks
        from detectron2.utils.events import EventStorage
    except ImportError as error:
        raise InputError(f"detectron2 is needed ({error}): set PYTHONPATH to a checkout") from None
    from moco_det.plugin import add_moco_det_config

    cfg = get_real_cfg()
    add_moco_det_config(cfg)
    cfg.merge_from_other_cfg(CfgNode(load_yaml(BASES / f"{BASE_OF[name]}.yaml")))
    cfg.merge_from_list(keys_of(name, precision.device, more))
    model = build_model(cfg)
    # the weights of ours, under the same names
    torch.manual_seed(0)
    own = config_of(name, precision.device, more)
    model.load_state_dict(build_detector(own).state_dict())
    optimizer = build_optimizer(cfg, model)
    scaler = torch.amp.GradScaler(precision.device, enabled=precision.needs_scaler)
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

    batches: Iterator[list[dict[str, Any]]] = iter(())
    if records:
        loader = build_detection_train_loader(
            [row_of(record, BoxMode.XYXY_ABS) for record in records],
            mapper=DatasetMapper(cfg, is_train=True),
            total_batch_size=len(inputs.images),
            num_workers=workers,
        )
        batches = iter(loader)

    def train() -> dict[str, float]:
        model.train()
        given = next(batches) if records else rows
        torch.manual_seed(1)
        with EventStorage(), precision.autocast():
            losses = model(given)
        optimizer.zero_grad()
        scaler.scale(sum(losses.values())).backward()
        scaler.step(optimizer)
        scaler.update()
        values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
        return dict(zip(losses, values, strict=True))

    def detect() -> int:
        model.eval()
        with torch.no_grad(), precision.autocast():
            found = model.inference([{"image": i} for i in inputs.images], do_postprocess=False)
        return sum(len(one) for one in found)

    return Engine(train, detect)


def row_of(record: Record, mode: Any) -> dict[str, Any]:
    """A record as detectron2's mapper reads it."""
    objects = [
        {
            "bbox": list(a.bbox),
            "bbox_mode": mode,
            "category_id": a.category,
            "segmentation": a.segmentation,
            "iscrowd": 0,
        }
        for a in record.annotations
    ]
    return {
        "file_name": record.file_name,
        "height": record.height,
        "width": record.width,
        "image_id": record.image_id,
        "annotations": objects,
    }


def timed(call: Callable[[], object], device: str) -> tuple[float, float]:
    """Seconds of a call, and those between two CUDA events around it (0 on a CPU)."""
    if device == "cpu":
        clock = time.process_time()
        call()
        return time.process_time() - clock, 0.0
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    torch.cuda.synchronize()
    clock = time.perf_counter()
    events[0].record()
    call()
    events[1].record()
    torch.cuda.synchronize()
    return time.perf_counter() - clock, events[0].elapsed_time(events[1]) / 1e3


def hold(name: str, there: dict[str, float], here: dict[str, float], precision: Precision) -> None:
    """Refuse to time two engines whose first losses differ."""
    pairs, limit = {key: (loss, here[key]) for key, loss in there.items()}, LIMITS[precision.name]
    # elsewhere other proposals are sampled: only the total can be held
    if precision.name != "float32" or precision.device == "cuda":
        pairs, limit = {"the total loss": (sum(there.values()), sum(here.values()))}, 5e-2
    for key, (one, other) in pairs.items():
        if abs(other - one) > limit * max(abs(one), 0.1):
            raise InputError(f"{name}, {precision.name}: {key} is {one} there and {other} here")


def compare(name: str, title: str, args: argparse.Namespace) -> None:
    """One detector in one precision: the check, then the rounds."""
    inputs = made_inputs(args.size, args.batch)
    on_gpu = args.device == "cuda"
    here = Precision(title, args.device)
    there = here if on_gpu else Precision("float32", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Any] = {"workers": args.workers}
        if args.loader:
            files["records"] = inputs.written(Path(folder), 64 // args.batch)
        engines = {
            "detectron2": theirs(name, inputs, args.keys, there, **files),
            title: ours(name, inputs, args.keys, here, **files),
        }
        if on_gpu and name != "timm":  # whose network no graph was tried with
            keys = [*args.keys, "SOLVER.CUDA_GRAPHS", "True"]
            engines[f"{title}, CUDA graphs"] = ours(name, inputs, keys, here, **files)
        if not args.loader:
            first = {which: engine.train() for which, engine in engines.items()}
            hold(name, first["detectron2"], first[title], here)
        steps: dict[str, Call] = {which: engine.train for which, engine in engines.items()}
        if on_gpu and name != "timm":
            cfg = config_of(name, args.device, args.keys)
            steps["convolutions alone"] = convolutions_alone(cfg, inputs.images, here)
        calls = {"training step": steps}
        if not args.loader:
            found = {which: engines[which].detect for which in ("detectron2", title)}
            calls["inference"] = found
        for what, each in calls.items():
            rounds: list[dict[str, tuple[float, float]]] = []
            total = len(each) * args.rounds
            with tqdm(total=total, desc=f"{name}, {title}, {what}", mininterval=1) as bar:
                for _ in range(args.rounds):
                    rounds.append({})
                    for which, call in each.items():
                        rounds[-1][which] = timed(call, args.device)
                        bar.update()
            report(what, name, rounds[args.warm_up :], args)


def report(
    what: str, name: str, rounds: list[dict[str, tuple[float, float]]], args: argparse.Namespace
) -> None:
    """Each of ours against each of the others: a row by the clock, and on a GPU one by events."""
    clocks = ["clock", "CUDA events"] if args.device == "cuda" else ["CPU"]
    model = config_of(name, args.device, args.keys).MODEL
    network = model.TIMM.NAME or f"R{model.RESNETS.DEPTH}"
    peers = [which for which in ("detectron2", "convolutions alone") if which in rounds[0]]
    for own in [which for which in rounds[0] if which not in peers]:
        for peer in peers:
            for kind, clock in enumerate(clocks):
                there, here = ([1e3 * one[which][kind] for one in rounds] for which in (peer, own))
                write_row(
                    args.rows,
                    what=what + (" with loader" if args.loader else ""),
                    case=f"{name}, {network}, {args.size} px, batch {args.batch}, {clock}",
                    peer=peer,
                    ours=own,
                    unit="ms",
                    there=there,
                    here=here,
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
    p.add_argument("--detectors", nargs="+", choices=BASE_OF, default=["fpn", "c4", "dc5"])
    p.add_argument("--size", type=int, default=320, help="pixels of a side")
    p.add_argument("--batch", type=int, default=2, help="images of a step")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--warm-up", type=int, default=0, help="rounds that do not count")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--loader", action="store_true", help="from files, by each engine's loader")
    p.add_argument("--workers", type=int, default=4, help="processes of a loader")
    p.add_argument("--precision", nargs="+", choices=LIMITS, default=["float32", "bfloat16"])
    add_rows_option(p)
    p.add_argument("--memory", action="store_true", help="peak memory instead of time")
    p.add_argument("--only", choices=("ours", "detectron2"), help=argparse.SUPPRESS)
    p.add_argument("keys", nargs="*", metavar="KEY VALUE", help="config overrides for both")
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.only:
        inputs = made_inputs(args.size, args.batch)
        name = args.detectors[0]
        if args.only == "detectron2":
            engine = theirs(name, inputs, args.keys, Precision("float32", "cpu"))
        else:
            engine = ours(name, inputs, args.keys, Precision(args.precision[0], "cpu"))
        engine.train()
        scale = 1024 if sys.platform != "darwin" else 1024**2
        print(json.dumps({"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale}))
        return 0
    if args.rounds <= args.warm_up:
        raise InputError(f"--rounds {args.rounds} with --warm-up {args.warm_up} leaves none")
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} thread(s)")
    for name in args.detectors:
        if args.memory:
            there, here = (peak_memory(name, e, args) for e in ("detectron2", "ours"))
            print(f"{name:4} peak memory    detectron2 {there:.0f} MiB   ours {here:.0f} MiB")
            continue
        for title in args.precision:
            compare(name, title, args)
            gc.collect()  # the last precision's graphs and gradients, before the next one's
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
