"""The main job on a laptop: data, pre-training, conversion, fine-tuning, an honest report.

Without options it paints its own data set. With --voc or --coco it does the same on yours.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from moco_det.data import (
    DetectionDataset,
    check_classes,
    check_images,
    coco_uri,
    load_dataset,
    voc_uri,
)
from moco_det.data.atomic import make_folder, write_text
from moco_det.data.crops import write_crops, write_image_list
from moco_det.data.scenes import write_scenes
from moco_det.doctor.hardware import check_load
from moco_det.errors import InputError
from moco_det.results import read_rows
from moco_det_tools.entry import run

CONFIGS = Path(str(importlib.resources.files("moco_det_configs")))
STAGES = 5


@dataclass(frozen=True)
class Plan:
    """Everything that decides the numbers; a folder holds one plan's results."""

    train: str
    test: str
    unlabelled: str
    detection: str
    pretrain_steps: int
    pretrain_batch: int
    queue: int
    finetune_steps: int
    seeds: int
    arms: tuple[str, ...] = ("random", "supervised", "moco")


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("-o", "--output", type=Path, default=Path("runs/quickstart"), metavar="DIR",
                   help="everything is written here (default runs/quickstart)")  # fmt: skip
    own = p.add_argument_group("your own data")
    own.add_argument("--voc", type=Path, metavar="DIR", help="a folder in PASCAL VOC layout")
    own.add_argument(
        "--train-split", metavar="SPLIT", help="of ImageSets/Main (default: trainval or else train)"
    )
    own.add_argument(
        "--test-split", metavar="SPLIT", help="of ImageSets/Main (default: test or else val)"
    )
    own.add_argument("--coco", type=Path, nargs=2, metavar=("TRAIN.json", "TEST.json"),
                     help="annotation files in COCO format")  # fmt: skip
    own.add_argument("--images", type=Path, nargs=2, metavar=("TRAIN_DIR", "TEST_DIR"),
                     help="the images of --coco's two files")  # fmt: skip
    own.add_argument("--strict", action="store_true", help="one broken image is an error")
    budget = p.add_argument_group("budget")
    budget.add_argument("--seeds", type=int, default=2, metavar="N",
                        help="fine-tuning runs per arm (default 2)")  # fmt: skip
    budget.add_argument("--pretrain-steps", type=int, metavar="N",
                        help="of both encoders (default 160; own data 200)")  # fmt: skip
    budget.add_argument("--finetune-steps", type=int, metavar="N",
                        help="optimizer steps of every run (default 160; own data 80)")  # fmt: skip
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
    args.output = args.output.resolve()
    for finding in check_load():
        print(f"{finding.level}: {finding.what}")
    clock = Clock()
    clock.heading("data")
    if args.voc or args.coco:
        plan, train_set = own_data(args)
    else:
        plan, train_set = painted_data(args)
    remember(plan, args.output)
    clock.heading(f"pre-training: {plan.pretrain_steps} steps for each of two encoders")
    checkpoints = pretrain_encoders(plan, train_set, args)
    clock.heading("conversion, with proof")
    weights = convert_encoders(checkpoints, args.output)
    runs = len(plan.arms) * plan.seeds
    clock.heading(f"fine-tuning: {len(plan.arms)} arms x {plan.seeds} seeds = {runs} runs")
    results = fine_tune(plan, weights, train_set, args, clock)
    clock.heading("report")
    make_report(plan, results, args.output)
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
    budget = {
        "--seeds": args.seeds,
        "--pretrain-steps": args.pretrain_steps,
        "--finetune-steps": args.finetune_steps,
    }
    for name, value in budget.items():
        if value is not None and value < 1:
            raise InputError(f"{name} {value}: it must be at least 1")


def painted_data(args: argparse.Namespace) -> tuple[Plan, DetectionDataset]:
    """Scenes of textured shapes: many without labels, few with, and a test set."""
    paths = write_scenes(
        args.output / "scenes",
        seed=0,
        unlabelled=3000,
        train=100,
        test=150,
        size=96,
        classes=("striped_disk", "checked_square", "dotted_triangle", "ringed_star"),
        objects=(1, 4),
    )
    train = coco_uri(paths.train_json, paths.train_images)
    test = coco_uri(paths.test_json, paths.test_images)
    plan = Plan(
        train=train,
        test=test,
        unlabelled=str(paths.unlabelled),
        detection="quick/R18_FPN.yaml",
        pretrain_steps=args.pretrain_steps or 160,
        pretrain_batch=128,
        queue=512,
        finetune_steps=args.finetune_steps or 160,
        seeds=args.seeds,
    )
    return plan, load_dataset(train)


def own_data(args: argparse.Namespace) -> tuple[Plan, DetectionDataset]:
    """The user's data set, checked; its training images without labels are pre-trained on."""
    if args.voc:
        train_split, test_split = voc_splits(args.voc, args.train_split, args.test_split)
        folder = args.voc.resolve()
        train, test = voc_uri(folder, train_split), voc_uri(folder, test_split)
    else:
        pairs = zip(args.coco, args.images, strict=True)
        train, test = (coco_uri(json_.resolve(), images.resolve()) for json_, images in pairs)
    train_set = load_dataset(train)
    test_set = load_dataset(test, classes=train_set.classes)
    check_classes(train_set, test_set)
    shared = {r.file_name for r in train_set.records} & {r.file_name for r in test_set.records}
    if shared:
        raise InputError(
            f"{len(shared)} test images are training images too (such as {min(shared)}): "
            "name disjoint splits with --train-split and --test-split"
        )
    train_set = check_images(train_set, strict=args.strict)
    test_set = check_images(test_set, strict=args.strict)
    for part in (train_set, test_set):
        print(
            f"{part.name}: {len(part)} images, {part.objects} objects, {len(part.classes)} classes"
        )
        for line in part.skipped:
            print(f"  warning: {line}")
    plan = Plan(
        train=train,
        test=test,
        unlabelled=str(args.output / "unlabelled.txt"),
        detection="quick/own_R18_FPN.yaml",
        pretrain_steps=args.pretrain_steps or 200,
        # a batch must not hold an image or a crop twice
        pretrain_batch=max(8, min(32, len(train_set), train_set.objects)),
        queue=min(512, max(32, len(train_set) // 2)),
        finetune_steps=args.finetune_steps or 80,
        seeds=args.seeds,
    )
    return plan, train_set


def voc_splits(root: Path, train: str | None, test: str | None) -> tuple[str, str]:
    """The splits asked for, or the usual ones that exist."""
    folder = root / "ImageSets" / "Main"
    there = {file.stem for file in folder.glob("*.txt")}
    if not root.is_dir():
        raise InputError(f"--voc {root} is not a folder: name the one that holds ImageSets")
    if not there:
        raise InputError(f"{folder} has no split files: --voc wants a folder in VOC layout")
    # trainval holds val, so that the two cannot be trained and tested on
    wanted_test = test or ("test" if "test" in there else "val")
    usual = ("train",) if wanted_test == "val" and "train" in there else ("trainval", "train")
    wanted_train = train or next((name for name in usual if name in there), "trainval")
    return wanted_train, wanted_test


def remember(plan: Plan, output: Path) -> None:
    """Note the plan in its folder; a folder with another plan's results is refused."""
    file = output / "quickstart.json"
    text = json.dumps(asdict(plan), indent=1)
    if file.is_file():
        try:
            before = dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError, OSError):
            raise InputError(f"{file} is damaged: name another folder with -o") from None
        now = json.loads(text)
        changed = [key for key in now if before.get(key) != now[key] and key != "seeds"]
        if changed:
            raise InputError(
                f"{output} holds results of other settings ({', '.join(changed)} differ): "
                "name another folder with -o"
            )
    make_folder(output)
    write_text(file, text + "\n")


def pretrain_encoders(
    plan: Plan, train_set: DetectionDataset, args: argparse.Namespace
) -> dict[str, Path]:
    """MoCo v2 on the images alone, and the supervised encoder on labelled crops; same budget."""
    from pretrain.config import load_config
    from pretrain.train import train

    if plan.unlabelled.endswith(".txt"):
        write_image_list(train_set, plan.unlabelled)
    crops = args.output / "crops"
    if not crops.is_dir():
        write_crops(train_set, crops)
    jobs = {
        "moco": ("pretrain/quick/demo_moco_v2_r18.yaml", plan.unlabelled),
        "supervised": ("pretrain/quick/demo_supervised_r18.yaml", str(crops)),
    }
    checkpoints = {}
    for arm, (config, data) in jobs.items():
        folder = args.output / "pretrain" / arm
        keys = {
            "DATA.PATH": data,
            "DATA.STRICT": str(args.strict),
            "OUTPUT_DIR": str(folder),
            "SOLVER.MAX_ITER": str(plan.pretrain_steps),
            # a queue with several keys of one image would call that image its own negative
            "SOLVER.BATCH": str(plan.pretrain_batch),
            "MOCO.K": str(plan.queue),
        }
        overrides = [text for pair in keys.items() for text in pair]
        checkpoints[arm] = train(load_config(CONFIGS / config, overrides), resume=folder.is_dir())
    return checkpoints


def convert_encoders(checkpoints: dict[str, Path], output: Path) -> dict[str, Path]:
    """Checkpoints to backbones; each conversion prints what it proved."""
    from moco_det.weights import convert

    weights = {}
    (output / "weights").mkdir(parents=True, exist_ok=True)
    for arm, checkpoint in checkpoints.items():
        weights[arm] = output / "weights" / f"{arm}.pkl"
        print("\n".join(convert(checkpoint, weights[arm], overwrite=True).lines()))
    return weights


def fine_tune(
    plan: Plan,
    weights: dict[str, Path],
    train_set: DetectionDataset,
    args: argparse.Namespace,
    clock: Clock,
) -> Path:
    """Every arm with every seed, same settings; rows that are there already are kept."""
    import torch

    from moco_det.config import load_config
    from moco_det.standalone import RunOptions
    from moco_det.standalone import run as run_detector

    results = args.output / "results.jsonl"
    done = set()
    if results.is_file():
        done = {row.data["run"] for row in read_rows([results]).rows if row.finished}
    todo = [
        (arm, seed)
        for seed in range(plan.seeds)
        for arm in plan.arms
        if f"{arm}_seed{seed}" not in done
    ]
    steps = plan.finetune_steps
    started = time.monotonic()
    for number, (arm, seed) in enumerate(todo):
        left = "measured after the first run"
        if number:
            seconds = (time.monotonic() - started) / number * (len(todo) - number)
            left = f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
        print(f"\n{arm}, seed {seed}: run {number + 1} of {len(todo)}, time left: {left}")
        folder = args.output / "runs" / f"{arm}_seed{seed}"
        keys = {
            "DATASETS.TRAIN": repr((plan.train,)),
            "DATASETS.TEST": repr((plan.test,)),
            "MODEL.DEVICE": "cuda" if torch.cuda.is_available() else "cpu",
            "MODEL.MASK_ON": str(train_set.has_masks),
            "MODEL.ROI_HEADS.NUM_CLASSES": str(len(train_set.classes)),
            "MODEL.WEIGHTS": repr(str(weights[arm])) if arm in weights else repr(""),
            "SOLVER.MAX_ITER": str(steps),
            "SOLVER.STEPS": repr((max(1, steps * 3 // 4), max(1, steps * 11 // 12))),
            "SOLVER.WARMUP_ITERS": str(max(1, steps // 6)),
            "TEST.EVAL_PERIOD": str(max(1, (steps + 1) // 2)),
            "OUTPUT_DIR": repr(str(folder)),
            "SEED": str(seed),
        }
        overrides = [text for pair in keys.items() for text in pair]
        config_file = CONFIGS / plan.detection
        options = RunOptions(
            config_name=config_file.stem,
            resume=folder.is_dir(),
            strict=args.strict,
            results=results,
            init_name=arm,
            command=train_command(plan.detection, arm, overrides),
        )
        run_detector(load_config(config_file, overrides), options)
    return results


def train_command(config: str, arm: str, overrides: list[str]) -> str:
    """The same run as a command of its own."""
    start = ["python", "tools/train_net.py", "--engine", "standalone", "--init-name", arm]
    return shlex.join([*start, "--config-file", f"configs/{config}", *overrides])


def make_report(plan: Plan, results: Path, output: Path) -> None:
    """report.html and report.md beside the results, and the verdict on the screen."""
    from moco_det.report import make_report as write_report
    from moco_det.report.screen import screen_lines

    folders = [output / "pretrain" / arm for arm in ("moco", "supervised")]
    own = plan.unlabelled.endswith(".txt")
    title = f"Transfer to detection: {output.name if own else 'painted scenes'}"
    files = write_report([results], output, title=title, pretraining=folders)
    print("\n".join(screen_lines(files["report.md"], files["tables.csv"])))
    for path in files.values():
        print(f"{path}   ({os.path.getsize(path) / 1024:.0f} KiB)")


if __name__ == "__main__":
    raise SystemExit(run(main))
