"""The main job on a laptop: data, pre-training, conversion, fine-tuning, an honest report.

Without options it paints its own data set and takes encoders pre-trained on such pictures; with
--pretrain it makes them anew. With --voc or --coco it does the same on yours.
"""

from __future__ import annotations

import argparse
import importlib.resources
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from moco_det.foundation.errors import InputError
from moco_det.runs.quickstart import (
    ARMS,
    Budget,
    Plan,
    at_once,
    coco_uris,
    convert_encoders,
    encoder_jobs,
    fine_tune,
    jobs_without_encoder,
    own_data,
    painted_data,
    remember,
    shipped_encoders,
    voc_uris,
)
from moco_det.runs.suites.side_by_side import cores, run_side_by_side
from moco_det_tools.entry import run

CONFIGS = Path(str(importlib.resources.files("moco_det_configs")))
STAGES = 5
DEFAULT_ARMS = ("random", "supervised", "moco")
# Steps of each encoder and of each run.
PAINTED_STEPS = (2000, 200)
OWN_STEPS = (1000, 150)


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="for all output (default runs/quickstart, or runs/pretrained with --pretrain)",
    )
    p.add_argument(
        "--arms",
        nargs="+",
        choices=list(ARMS),
        default=list(DEFAULT_ARMS),
        help=f"initialisations (default {' '.join(DEFAULT_ARMS)})",
    )
    p.add_argument("--pretrain", action="store_true", help="make the painted world's encoders anew")
    p.add_argument(
        "--labels",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="fine-tune on so many of the 100 labelled scenes, one number after the other",
    )
    own = p.add_argument_group("your own data")
    own.add_argument("--voc", type=Path, metavar="DIR", help="a folder in PASCAL VOC layout")
    own.add_argument(
        "--train-split", metavar="SPLIT", help="of ImageSets/Main (default: trainval or else train)"
    )
    own.add_argument(
        "--test-split", metavar="SPLIT", help="of ImageSets/Main (default: test or else val)"
    )
    own.add_argument(
        "--coco",
        type=Path,
        nargs=2,
        metavar=("TRAIN.json", "TEST.json"),
        help="annotation files in COCO format",
    )
    own.add_argument(
        "--images",
        type=Path,
        nargs=2,
        metavar=("TRAIN_DIR", "TEST_DIR"),
        help="the images of --coco's two files",
    )
    own.add_argument("--strict", action="store_true", help="one broken image is an error")
    budget = p.add_argument_group("budget")
    budget.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of painter, encoders and runs (default 0)"
    )
    budget.add_argument(
        "--seeds", type=int, default=2, metavar="N", help="fine-tuning runs per arm (default 2)"
    )
    budget.add_argument(
        "--pretrain-steps",
        type=int,
        metavar="N",
        help=f"of each encoder (default {PAINTED_STEPS[0]}; own data {OWN_STEPS[0]})",
    )
    budget.add_argument(
        "--finetune-steps",
        type=int,
        metavar="N",
        help=f"of each run (default {PAINTED_STEPS[1]}; own data {OWN_STEPS[1]})",
    )
    return p


class Clock:
    """Headings with the time that has passed."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.stage = 0

    def heading(self, text: str) -> None:
        """Announce the next stage."""
        self.stage += 1
        print(f"\n[{self.stage}/{STAGES}] {text}   ({self.passed()} so far)", flush=True)

    def passed(self) -> str:
        """Minutes and seconds since the start."""
        seconds = int(time.monotonic() - self.start)
        return f"{seconds // 60}:{seconds % 60:02d}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not there yet, then make the report."""
    args = parser().parse_args(argv)
    check_arguments(args)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    # the report finds the images again from wherever it is made
    default = Path("runs/pretrained" if args.pretrain else "runs/quickstart")
    output = (args.output or default).resolve()
    device = describe_machine()
    clock = Clock()
    clock.heading("data")
    plan = make_plan(args, output)
    remember(plan, output)
    if plan.unlabelled:
        clock.heading(
            f"pre-training, {plan.budget.pretrain_steps} steps each; runs from random weights"
        )
        jobs = encoder_jobs(plan, output, CONFIGS, device=device, strict=args.strict)
        others = jobs_without_encoder(plan, output, CONFIGS, device=device)
        run_side_by_side([*jobs, *others], at_once=at_once(device))
        checkpoints = {job.name: job.folder / "checkpoint.pth" for job in jobs}
        curves = [job.folder for job in jobs]
    else:
        clock.heading("pre-training: done before, docs/demo.md says how; --pretrain does it again")
        checkpoints, curves = shipped_encoders(plan), []
    clock.heading("conversion, with proof")
    weights = convert_encoders(checkpoints, output)
    clock.heading(f"fine-tuning, {plan.budget.finetune_steps} steps each")
    results = fine_tune(plan, weights, output, CONFIGS, device=device)
    clock.heading("report")
    make_report(results, output, curves)
    print(f"done in {clock.passed()}")
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is written."""
    if args.voc and args.coco:
        raise InputError("--voc and --coco name two data sets: give one of them")
    if bool(args.coco) != bool(args.images):
        raise InputError("--coco TRAIN.json TEST.json goes with --images TRAIN_DIR TEST_DIR")
    if (args.train_split or args.test_split) and not args.voc:
        raise InputError("--train-split and --test-split are for --voc")
    own = args.voc or args.coco
    if args.labels and own:
        raise InputError("--labels is for the painted scenes: leave out --voc and --coco")
    if not (own or args.pretrain):
        wanted = {
            "--labels (a supervised encoder for each number)": args.labels,
            "--arms instdisc": "instdisc" in args.arms,
            "--pretrain-steps": args.pretrain_steps,
        }
        for name, value in wanted.items():
            if value:
                raise InputError(f"{name} needs encoders that are made for it: add --pretrain")
    budget = {
        "--seeds": args.seeds,
        "--pretrain-steps": args.pretrain_steps,
        "--finetune-steps": args.finetune_steps,
    }
    for name, value in budget.items():
        if value is not None and value < 1:
            raise InputError(f"{name} {value}: it must be at least 1")
    if args.seed < 0:
        raise InputError(f"--seed {args.seed}: it must not be negative")


def describe_machine() -> str:
    """The device that everything runs on, said in a line; warnings about a busy machine."""
    import torch

    from moco_det.doctor.hardware import check_load

    if torch.cuda.is_available():
        print(f"on {torch.cuda.get_device_name()}")
        return "cuda"
    print(f"on {cores()} CPU cores; torch sees no GPU")
    for finding in check_load():
        print(f"{finding.level}: {finding.what}")
    return "cpu"


def make_plan(args: argparse.Namespace, output: Path) -> Plan:
    """The data set, painted or read, with the budget."""
    own = args.voc or args.coco
    pretrain_steps, finetune_steps = OWN_STEPS if own else PAINTED_STEPS
    budget = Budget(
        arms=tuple(arm for arm in ARMS if arm in args.arms),
        seed=args.seed,
        seeds=args.seeds,
        pretrain_steps=args.pretrain_steps or pretrain_steps,
        finetune_steps=args.finetune_steps or finetune_steps,
    )
    if not own:
        return painted_data(output, budget, labels=args.labels, pretrain=args.pretrain)
    if args.voc:
        train, test = voc_uris(args.voc, args.train_split, args.test_split)
    else:
        train, test = coco_uris(args.coco, args.images)
    return own_data(train, test, output, budget, strict=args.strict)


def make_report(results: Path, output: Path, pretraining: Sequence[Path]) -> None:
    """report.html and report.md beside the results, and the verdict on the screen."""
    from moco_det.report import make_report as write_report
    from moco_det.report.screen import screen_lines

    title = f"Transfer to detection: {output.name}"
    files = write_report([results], output, title=title, pretraining=pretraining)
    print("\n".join(screen_lines(files["report.md"], files["tables.csv"])))
    for path in files.values():
        print(f"{path}   ({os.path.getsize(path) / 1024:.0f} KiB)")


if __name__ == "__main__":
    raise SystemExit(run(main))
