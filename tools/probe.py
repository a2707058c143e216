"""Measure features: tools/probe.py knn runs/moco/checkpoint.pth --train DIR --test DIR

knn           a weighted vote of the nearest training images; several checkpoints make a curve
linear        a linear classifier on the frozen trunk, by SGD over random crops (the papers' probe)
linear-lbfgs  the same on one central view an image, by L-BFGS: quick, and a protocol of its own
finetune      the whole network trained on the labels

CHECKPOINT is a checkpoint.pth of tools/pretrain.py, another ResNet checkpoint that
tools/convert_weights.py reads (torchvision's, the released MoCo's ...), or the word random.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moco_det.foundation.errors import InputError
from moco_det_tools.entry import run

if TYPE_CHECKING:
    import torch

    from pretrain.data import ImageList
    from pretrain.probe import Measured, Schedule, Start

RANDOM = "random"
# command -> protocol of its rows
PROTOCOLS = {
    "knn": "knn",
    "linear": "linear",
    "linear-lbfgs": "linear_lbfgs",
    "finetune": "finetune",
}


@dataclass(frozen=True)
class Subject:
    """What is probed: an arm's name, an encoder, and the file it came from."""

    name: str
    start: Start
    file: str | None = None
    sha256: str | None = None
    format: str | None = None

    def init(self) -> dict[str, Any]:
        """The `init` of a row."""
        start = self.start
        source: dict[str, Any] | None = None
        if self.file is not None:
            source = {"format": self.format, "method": start.method, "arch": start.arch}
            source |= {"file": self.file, "seed": start.seed, "settings": start.settings}
        row = {"name": self.name, "weights": self.file, "sha256": self.sha256}
        return {**row, "source": source, "verified": None, "input": None}


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    p = argparse.ArgumentParser(
        prog="probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="PROTOCOL")
    knn = commands.add_parser("knn", help="a vote of the nearest training images")
    _add_common(knn, several=True, batch=128)
    knn.add_argument("--k", type=int, default=200, help="neighbours that vote (default 200)")
    knn.add_argument("--temperature", type=float, default=0.07, help="of the vote (default 0.07)")
    knn.add_argument("--features", choices=("pooled", "head"), default="pooled")

    linear = commands.add_parser("linear", help="a linear classifier on the frozen trunk, by SGD")
    _add_common(linear, several=False, batch=256)
    _add_schedule(linear, lr=30.0, weight_decay=0.0, milestones=(60, 80))

    quick = commands.add_parser("linear-lbfgs", help="a linear classifier on cached features")
    _add_common(quick, several=True, batch=128)
    quick.add_argument("--l2", type=float, nargs="+", help="strengths to choose from")

    tune = commands.add_parser("finetune", help="the whole network trained on the labels")
    _add_common(tune, several=False, batch=256)
    _add_schedule(tune, lr=0.03, weight_decay=1e-4, milestones=(70, 90))
    tune.add_argument("--head-lr", type=float, help="rate of the linear layer (default: --lr)")
    return p


def _add_common(p: argparse.ArgumentParser, *, several: bool, batch: int) -> None:
    add = p.add_argument
    add("checkpoints", nargs="+" if several else 1, metavar="CHECKPOINT")
    add("--train", required=True, metavar="DIR", help="images to learn from, in class folders")
    add("--test", required=True, metavar="DIR", help="images to test on, of the same classes")
    add("--size", type=int, metavar="PIXELS", help="of the views (default: the checkpoint's, 224)")
    add("--name", help="the arm's name (default: the method, or the file's name)")
    add("--arch", help="architecture of random weights (default: the checkpoints')")
    add("--seed", type=int, default=0, help="of random weights and of training (default 0)")
    add("--batch", type=int, default=batch, help=f"images at once (default {batch})")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--precision", choices=("float32", "bfloat16"), default="float32")
    add("--results", type=Path, default=Path("results.jsonl"), metavar="FILE",
        help="where rows are added (default results.jsonl)")  # fmt: skip


def _add_schedule(
    p: argparse.ArgumentParser, *, lr: float, weight_decay: float, milestones: tuple[int, int]
) -> None:
    add, usual = p.add_argument, f"{milestones[0]} and {milestones[1]} of 100"
    add("--epochs", type=int, default=100, help="default 100")
    add("--lr", type=float, default=lr, help=f"learning rate (default {lr:g})")
    add("--momentum", type=float, default=0.9, help="default 0.9")
    add("--weight-decay", type=float, default=weight_decay, help=f"default {weight_decay:g}")
    add("--schedule", choices=("step", "cosine"), default="step")
    add("--milestones", type=int, nargs="*", metavar="EPOCH", help=f"of step (default: {usual})")
    add("--gamma", type=float, default=0.1, help="factor at a milestone (default 0.1)")
    add("--min-scale", type=float, default=0.08, help="smallest crop, share of area (0.08)")
    add("--workers", type=int, default=2, help="processes that make the crops (default 2)")
    add("--cache-mb", type=int, default=0, help="keep decoded images where they fit in this")
    add("--output", type=Path, metavar="DIR", help="keeps the classifier (in runs/probe)")
    add("--resume", action="store_true", help="continue what --output keeps")
    p.set_defaults(paper_milestones=milestones)


def main(argv: Sequence[str] | None = None) -> int:
    """Load, measure, add one row a checkpoint."""
    args = parser().parse_args(argv)
    check_arguments(args)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    from moco_det.foundation.precision import pick_device
    from moco_det.results import append_row
    from moco_det.runs.row import now
    from pretrain.probe import fingerprint, labelled_pair

    device = pick_device(args.device, key="--device")
    train, test = labelled_pair(args.train, args.test, keys=("--train", "--test"))
    subjects = load_subjects(args)
    size = common_size(args, subjects)
    dataset = {
        "train": "/".join(Path(args.train).resolve().parts[-2:]),
        "test": "/".join(Path(args.test).resolve().parts[-2:]),
        "train_uri": args.train,
        "test_uri": args.test,
        "train_fingerprint": fingerprint(train),
        "test_fingerprint": fingerprint(test),
        "train_images": len(train),
        "test_images": len(test),
        "classes": list(train.classes),
    }
    for subject in subjects:
        started, clock = now(), time.monotonic()
        subject.start.encoder.to(device)
        measured = PROBES[args.command](args, subject, train, test, size)
        subject.start.encoder.to("cpu")
        row = describe(args, subject, measured, size=size, device=device)
        row |= {"dataset": dataset, "started": started}
        row["wall_seconds"] = round(time.monotonic() - clock, 3)
        append_row(args.results, row)
        print(said(row))
    print(f"{len(subjects)} added to {args.results}")
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is read."""
    low = {"size": 32, "seed": 0, "batch": 1, "k": 1, "workers": 0, "cache_mb": 0}
    for key, least in low.items():
        value = vars(args).get(key)
        if value is not None and value < least:
            raise InputError(f"--{key.replace('_', '-')} {value}: it must be at least {least}")
    if args.name is not None and not args.name.strip():
        raise InputError("--name is empty: give the arm a name or leave it out")
    if args.results.is_dir():
        raise InputError(f"--results {args.results} is a folder: name a file, results.jsonl")
    if "schedule" in args:
        make_schedule(args).check()


def load_subjects(args: argparse.Namespace) -> list[Subject]:
    """Every checkpoint of the command line, in its order, read and named."""
    from pretrain.probe import random_start

    loaded = {text: load_file(Path(text), args.name) for text in args.checkpoints if text != RANDOM}
    archs = {subject.start.arch for subject in loaded.values()}
    subjects = []
    for text in args.checkpoints:
        if text != RANDOM:
            subjects.append(loaded[text])
            continue
        arch = args.arch or (min(archs) if len(archs) == 1 else None)
        if arch is None:
            raise InputError("random weights need an architecture: give --arch, such as resnet18")
        name = args.name if args.name and not loaded else RANDOM
        subjects.append(Subject(name, random_start(arch, seed=args.seed)))
    return subjects


def load_file(path: Path, name: str | None) -> Subject:
    """An encoder from a checkpoint of ours or anybody's; bad files are an input error."""
    from moco_det.runs.row import sha256_of
    from moco_det.weights import read_checkpoint
    from pretrain.probe import array_start

    if not path.is_file():
        raise InputError(f"no checkpoint {path}: name a file, or the word random")
    ours = own_start(path)
    if ours is not None:
        name = name or ours.method or path.stem
        return Subject(name, ours, path.name, sha256_of(path), "moco-det/1")
    source = read_checkpoint(path)
    start = array_start(
        {key: tensor.read() for key, tensor in {**source.tensors, **source.counters}.items()},
        arch=source.architecture,
        method=source.method,
        fed=source.input,
        origin=str(path),
    )
    return Subject(name or path.stem, start, path.name, source.sha256, source.format)


def own_start(path: Path) -> Start | None:
    """What tools/pretrain.py wrote, None for a file of another format.

    A file that is damaged is left to the other reader, which says in what way.
    """
    from pretrain import checkpoints
    from pretrain.probe import packed_start

    try:
        content = checkpoints.read(path)
    except InputError:
        return None
    return packed_start(content, origin=str(path))


def common_size(args: argparse.Namespace, subjects: Sequence[Subject]) -> int:
    """--size, or the one size that the checkpoints were trained at."""
    if args.size is not None:
        return int(args.size)
    sizes = {subject.start.size for subject in subjects if subject.start.size is not None}
    if len(sizes) > 1:
        shown = ", ".join(map(str, sorted(sizes)))
        raise InputError(f"the checkpoints were trained at sizes {shown}: give one by --size")
    return max(sizes, default=224)


def probe_knn(
    args: argparse.Namespace, subject: Subject, train: ImageList, test: ImageList, size: int
) -> Measured:
    """The weighted vote (InstDisc paper, Section 3.4)."""
    from pretrain.probe import measure_knn

    return measure_knn(
        subject.start,
        train,
        test,
        size=size,
        k=args.k,
        temperature=args.temperature,
        features=args.features,
        batch=args.batch,
        bfloat16=args.precision == "bfloat16",
    )


def probe_lbfgs(
    args: argparse.Namespace, subject: Subject, train: ImageList, test: ImageList, size: int
) -> Measured:
    """Logistic regression on the features of central views."""
    from pretrain.probe import measure_lbfgs

    return measure_lbfgs(
        subject.start,
        train,
        test,
        size=size,
        strengths=args.l2,
        seed=args.seed,
        batch=args.batch,
        bfloat16=args.precision == "bfloat16",
    )


def probe_sgd(
    args: argparse.Namespace, subject: Subject, train: ImageList, test: ImageList, size: int
) -> Measured:
    """The linear probe or fine-tuning."""
    from pretrain.probe import Saving, measure_sgd

    origin = subject.sha256 or f"random {subject.start.arch} of seed {args.seed}"
    return measure_sgd(
        subject.start,
        train,
        test,
        frozen=args.command == "linear",
        size=size,
        schedule=make_schedule(args),
        seed=args.seed,
        workers=args.workers,
        cache_mb=args.cache_mb,
        bfloat16=args.precision == "bfloat16",
        saving=Saving(output_folder(args, subject, size) / "probe.pth", args.resume, origin),
    )


PROBES = {"knn": probe_knn, "linear": probe_sgd, "linear-lbfgs": probe_lbfgs, "finetune": probe_sgd}


def make_schedule(args: argparse.Namespace) -> Schedule:
    """What the command line says of SGD; the papers' milestones keep their share of the epochs."""
    from pretrain.probe import Schedule

    milestones = args.milestones
    if milestones is None:
        scaled = {round(epoch * args.epochs / 100) for epoch in args.paper_milestones}
        milestones = sorted(epoch for epoch in scaled if 0 < epoch < args.epochs)
    linear = args.command == "linear"
    return Schedule(
        epochs=args.epochs,
        batch=args.batch,
        lr=0.0 if linear else args.lr,
        head_lr=args.lr if linear or args.head_lr is None else args.head_lr,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        schedule=args.schedule,
        milestones=tuple(milestones) if args.schedule == "step" else (),
        gamma=args.gamma,
        min_scale=args.min_scale,
    )


def run_name(args: argparse.Namespace, subject: Subject, size: int, seed: int) -> str:
    """A row's `run`: protocol, arm, pre-training steps where they are known, size, seed."""
    neighbours = f"{args.k}" if "k" in args else ""
    steps = subject.start.iterations
    known = "" if steps is None else f"_{steps}"
    name = f"{PROTOCOLS[args.command]}{neighbours}_{subject.name}{known}_{size}px_seed{seed}"
    return name.replace("/", "-")


def output_folder(args: argparse.Namespace, subject: Subject, size: int) -> Path:
    """Where the classifier of a probe by SGD is kept."""
    return args.output or Path("runs/probe") / run_name(args, subject, size, args.seed)


def describe(
    args: argparse.Namespace,
    subject: Subject,
    measured: Measured,
    *,
    size: int,
    device: torch.device,
) -> dict[str, Any]:
    """The row of results.jsonl, but for the data and the time."""
    import torch
    import yaml

    from moco_det import __version__
    from moco_det.results import SCHEMA
    from moco_det.runs import row

    protocol, output_dir = PROTOCOLS[args.command], "."
    if "schedule" in args:
        output_dir = row.relative(output_folder(args, subject, size), args.results.parent)
    device_name = torch.cuda.get_device_name() if device.type == "cuda" else row.cpu_name()
    return {
        "schema": SCHEMA,
        "run": run_name(args, subject, size, measured.seed),
        "status": "finished",
        "task": "probe",
        "protocol": protocol,
        "config_name": protocol,
        "config": yaml.safe_dump(measured.settings, sort_keys=True),
        "init": subject.init(),
        "engine": row.describe_engine("probe", __version__),
        "precision": args.precision,
        "seed": measured.seed,
        "iterations": subject.start.iterations,
        "batch": args.batch,
        "hardware": row.describe_hardware(device_name),
        "metrics": {"probe": {**measured.accuracy._asdict(), **measured.extra}},
        "output_dir": output_dir,
        "command": shlex.join(sys.argv),
        "warnings": measured.warnings,
    }


def said(row: dict[str, Any]) -> str:
    """A row for the screen: its accuracies and its warnings."""
    numbers = [
        f"{key} {value:.2f}"
        for key, value in row["metrics"]["probe"].items()
        if key in ("top1", "top5", "mean_class") and value is not None
    ]
    return "\n  note: ".join([f"{row['run']}: {'  '.join(numbers)}", *row["warnings"]])


if __name__ == "__main__":
    raise SystemExit(run(main))
