"""Measure how good features are, one row of results.jsonl per checkpoint.

knn           a weighted vote of the nearest training images; several checkpoints make a curve
linear        a linear classifier on the frozen trunk, by SGD over random crops (the papers' probe)
linear-lbfgs  the same on one central view per image, by L-BFGS: quick, and a protocol of its own
finetune      the whole network trained on the labels

CHECKPOINT is a checkpoint.pth of moco-det pretrain, another ResNet checkpoint that
moco-det convert-weights reads (torchvision's, the released MoCo's ...), or the word random.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from moco_det import __version__
from moco_det.foundation.commands import command
from moco_det.foundation.errors import InputError
from moco_det_tools.entry import make_parser, run
from pretrain.probe.options import PROTOCOLS, read_options

if TYPE_CHECKING:
    from pretrain.probe.weights import Start


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    p = make_parser("probe", __doc__, example="knn runs/moco/checkpoint.pth --train DIR --test DIR")
    commands = p.add_subparsers(dest="command", required=True, metavar="PROTOCOL")
    for protocol, (line, options) in PROTOCOLS.items():
        sub = commands.add_parser(protocol, help=line, formatter_class=p.formatter_class)
        add = sub.add_argument
        add("checkpoints", nargs=options.checkpoints, metavar="CHECKPOINT")
        add("--train", required=True, metavar="DIR", help="images to learn from, by class folder")
        add("--test", required=True, metavar="DIR", help="images to test on, of the same classes")
        add("--size", type=int, metavar="PIXELS", help="of the views (default: the checkpoint's)")
        add("--name", help="the arm's name (default: the method, or the file's name)")
        add("--run", help="the row's name (default: the protocol, the arm, the seed ...)")
        add("--arch", help="architecture of random weights (default: the checkpoints')")
        add("--seed", type=int, default=0, help="of random weights and of training")
        add("--batch", type=int, default=options.batch, help="images at once")
        add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where it runs")
        precisions = ("float32", "bfloat16")
        add("--precision", choices=precisions, default="float32", help="of the encoder")
        add("--results", type=Path, default=Path("results.jsonl"), metavar="FILE",
            help="where rows are added")  # fmt: skip
        for one in fields(options):
            add(f"--{one.name.replace('_', '-')}", **one.metadata["argument"])
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Load, measure, add one row per checkpoint."""
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(given)
    options, how = read_options(vars(args))
    if args.name is not None and not args.name.strip():
        raise InputError("--name is empty: give the arm a name or leave it out")
    if args.results.is_dir():
        raise InputError(f"--results {args.results} is a folder: name a file, results.jsonl")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    from moco_det.foundation.precision import pick_device
    from moco_det.results import append_row
    from moco_det.runs.row import RunRow, describe_engine, describe_hardware, now, relative
    from pretrain.probe.features import describe_pair, labelled_pair
    from pretrain.probe.protocols import measure, run_name
    from pretrain.probe.weights import common_size, load_starts

    device = pick_device(args.device, key="--device")
    pair = labelled_pair(args.train, args.test, keys=("--train", "--test"))
    starts = load_starts(
        args.checkpoints, load_file, arch=args.arch, seed=args.seed, name=args.name
    )
    if args.size is None:
        how = replace(how, size=common_size(starts))
    dataset = describe_pair(pair, uris=(args.train, args.test))
    for start in starts:
        started, clock = now(), time.monotonic()
        start.encoder.to(device)
        measured = measure(options, start, pair, how)
        start.encoder.to("cpu")
        row = RunRow(
            run=args.run or run_name(options, start, how.size, measured.seed),
            task="probe",
            dataset=dataset,
            config_name=options.protocol,
            config=yaml.safe_dump(measured.settings, sort_keys=True),
            init=start.row(),
            engine=describe_engine("probe", __version__),
            precision=args.precision,
            seed=measured.seed,
            iterations=start.iterations,
            batch=args.batch,
            wall_seconds=round(time.monotonic() - clock, 3),
            hardware=describe_hardware(device.type),
            output_dir=relative(measured.folder or args.results.parent, args.results.parent),
            command=command("probe", *given),
            started=started,
            warnings=measured.warnings,
            metrics={"probe": {**measured.accuracy._asdict(), **measured.extra}},
        )
        append_row(args.results, {**row.as_dict(), "protocol": options.protocol})
        print("\n  note: ".join([f"{row.run}: {measured.accuracy}", *measured.warnings]))
    print(f"{len(starts)} added to {args.results}")
    return 0


def load_file(path: Path) -> Start:
    """An encoder from a checkpoint of ours or anybody's; bad files are an input error."""
    from moco_det.runs.row import sha256_of
    from moco_det.weights.timm_checkpoint import TimmCheckpoint, read_any
    from pretrain import checkpoints
    from pretrain.probe.weights import array_start, packed_start

    if not path.is_file():
        raise InputError(f"no checkpoint {path}: name a file, or the word random")
    try:
        content = checkpoints.read(path)
    except InputError:  # another format, or damaged: the reader of anybody's says in what way
        source = read_any(path)
        if isinstance(source, TimmCheckpoint):
            raise InputError(f"{path} is a {source.name} of timm: probes are of ResNets") from None
        arrays = {key: one.read() for key, one in {**source.tensors, **source.counters}.items()}
        start = array_start(
            arrays,
            arch=source.architecture,
            method=source.method,
            fed=source.known_input(),
            origin=str(path),
        )
        return replace(
            start, name=path.stem, file=path.name, sha256=source.sha256, format=source.format
        )
    start = packed_start(content, origin=str(path))
    name = start.method or path.stem
    return replace(start, name=name, file=path.name, sha256=sha256_of(path), format="moco-det/1")


if __name__ == "__main__":
    raise SystemExit(run(main))
