"""The main job on a laptop: data, pre-training, conversion, fine-tuning, an honest report.

Without options it paints its own data set and takes encoders pre-trained on such pictures; with
--pretrain it makes them anew. With --data, --voc or --coco it does the same on yours.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from moco_det.runs.quickstart.plan import ARMS, MINUTES, PAINTED_STEPS
from moco_det_tools.entry import at_least, make_parser, run


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    p = make_parser("quickstart", __doc__, example="--data DIR -o runs/mine")
    add = p.add_argument
    add(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for all output (default: runs/quickstart; runs/pretrained with --pretrain)",
    )
    add(
        "--arms",
        nargs="+",
        choices=list(ARMS),
        default=["random", "supervised", "moco"],
        help="initialisations to compare (default: random supervised moco)",
    )
    add(
        "--weights",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="checkpoints of one network as the other arms (default: pre-training)",
    )
    add("--pretrain", action="store_true", help="make the painted world's encoders anew")
    add(
        "--labels",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="numbers of labelled scenes to fine-tune on, one after the other (default: 100)",
    )
    group = p.add_argument_group("your own data")
    either, add = group.add_mutually_exclusive_group().add_argument, group.add_argument
    either(
        "--data",
        type=Path,
        metavar="DIR",
        help="in any layout: VOC, COCO, YOLO, photos alone (default: painted scenes)",
    )
    either("--voc", type=Path, metavar="DIR", help="in PASCAL VOC layout (default: painted scenes)")
    split = "a list of ImageSets/Main (default: {} or else {})"
    add("--train-split", metavar="SPLIT", help=split.format("trainval", "train"))
    add("--test-split", metavar="SPLIT", help=split.format("test", "val"))
    either(
        "--coco",
        type=Path,
        nargs="+",
        metavar=("TRAIN.json", "TEST.json"),
        help="COCO annotation files, or one, which is split (default: painted scenes)",
    )
    add(
        "--images",
        type=Path,
        nargs="+",
        metavar=("TRAIN_DIR", "TEST_DIR"),
        help="the images of --coco's files (default: none)",
    )
    add("--strict", action="store_true", help="one broken image is an error")
    add = partial(p.add_argument_group("budget").add_argument, metavar="N")
    add(
        "--minutes",
        type=at_least(1),
        help=f"time for your own data, which sets the steps (default: {MINUTES})",
    )
    add("--seed", type=at_least(0, 10**7), default=0, help="seed of painter, encoders and runs")
    add("--seeds", type=at_least(1, 1000), default=2, help="fine-tuning runs per arm")
    for stage, what, painted in zip(
        ("pretrain", "finetune"), ("encoder", "run"), PAINTED_STEPS, strict=True
    ):
        shown = f"steps of each {what} (default: {painted}; own data by --minutes)"
        add(f"--{stage}-steps", type=at_least(1), help=shown)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not there yet, then make the report."""
    args = parser().parse_args(argv)
    from moco_det.runs.quickstart.flow import compare
    from moco_det.runs.quickstart.options import check_together, choose_budget, choose_data
    from moco_det.runs.suites.matrix import read_weights
    from moco_det.weights.download import local_path

    check_together(args)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    weights = {arm: local_path(file) for arm, file in read_weights(args.weights).items()}
    default = Path("runs/pretrained" if args.pretrain else "runs/quickstart")
    # the report finds the images again from wherever it is made
    output = (args.output or default).resolve()
    prepare, device = choose_data(args, weights), describe_machine()
    budget = choose_budget(args, weights, output, device=device)
    compare(prepare, budget, output, device=device, strict=args.strict, given=weights)
    return 0


def describe_machine() -> str:
    """The device that everything runs on, said in a line; warnings about a busy machine."""
    import torch

    from moco_det.doctor.hardware import check_load
    from moco_det.foundation.launching import cores

    if torch.cuda.is_available():
        print(f"on {torch.cuda.get_device_name()}")
        return "cuda"
    print(f"on {cores()} CPU cores; torch sees no GPU")
    for finding in check_load():
        print(f"{finding.level}: {finding.what}")
    return "cpu"


if __name__ == "__main__":
    raise SystemExit(run(main))
