"""The encoders of the arms: how they are pre-trained, and their conversion with proof."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from moco_det.data import check_images, load_dataset
from moco_det.foundation.atomic import make_folder
from moco_det.data.crops import write_crops, write_image_list
from moco_det.runs.quickstart.plan import ARMS, Plan
from moco_det.runs.suites.side_by_side import Job
from moco_det.weights.convert import convert
from moco_det.weights.summaries import conversion_lines

# Batch of all encoders; fewer images than that are a batch, so that none is in it twice.
BATCH = 128
QUEUE = 512
# Encoders of the painted world, for who has no time to pre-train them.
SHIPPED = Path(__file__).parent / "checkpoints"
# kNN accuracy is measured so often while an encoder learns.
MEASURED = 5


def encoder_name(plan: Plan, arm: str, setting: str) -> str:
    """The encoder of an arm in a setting: a supervised one has seen that setting's labels."""
    return f"{arm}{setting.removeprefix(plan.setting)}" if arm == "supervised" else arm


def encoder_jobs(
    plan: Plan, output: Path, configs: Path, *, device: str, strict: bool
) -> list[Job]:
    """Pre-training by encoder: the same steps, images per step and architecture for all of them.

    Contrastive encoders see the unlabelled pictures, supervised ones the labelled objects, cut
    out. The neighbours of the cut-outs are the watch on what the former learn.
    """
    crops = {
        setting: output / f"crops{setting.removeprefix(plan.setting)}" for setting in plan.train
    }
    for setting, folder in crops.items():
        if not folder.is_dir():  # images that do not open are left out here, too
            dataset = check_images(load_dataset(plan.train[setting]), strict=strict, progress=False)
            write_crops(dataset, folder)
            if plan.unlabelled.endswith(".txt"):
                write_image_list(dataset, plan.unlabelled)
    watched = max(crops.values(), key=count_images)
    several_classes = len(list(watched.iterdir())) > 1
    jobs = {}
    for arm, config in ((arm, ARMS[arm]) for arm in plan.budget.arms if ARMS[arm]):
        for setting in plan.train:
            name = encoder_name(plan, arm, setting)
            images = crops[setting] if arm == "supervised" else Path(plan.unlabelled)
            count, folder = count_images(images), output / "pretrain" / name
            keys = {
                "DATA.PATH": images,
                "DATA.STRICT": strict,
                "OUTPUT_DIR": folder,
                "SOLVER.MAX_ITER": plan.budget.pretrain_steps,
                "SOLVER.BATCH": min(BATCH, count),
                # a queue with several keys of one image would call that image its own negative
                "MOCO.K": max(min(BATCH, count), min(QUEUE, count // 2)),
                "SEED": plan.budget.seed,
                "DEVICE": device,
                # on a GPU the main process must not wait for the views
                "DATA.WORKERS": 4 if device == "cuda" else 0,
            }
            if Path(plan.unlabelled).is_file():  # photographs of one's own, of any size
                keys |= {"DATA.SHORTER_SIDE": 64}
            if arm != "supervised" and several_classes:
                epochs = plan.budget.pretrain_steps / (count // min(BATCH, count))
                keys |= {"KNN.TRAIN": watched, "KNN.EVERY": round(epochs / MEASURED, 3)}
            jobs[name] = Job(
                name, _command(configs / str(config), keys), folder, plan.budget.pretrain_steps
            )
    return list(jobs.values())


def _command(config: Path, keys: Mapping[str, object]) -> Sequence[str]:
    overrides = [str(item) for pair in keys.items() for item in pair]
    start = [sys.executable, "-m", "moco_det_tools.pretrain"]
    return [*start, "--config-file", str(config), "--resume", *overrides]


def count_images(images: Path) -> int:
    """Images in a folder, with or without folders of classes, or lines of a list."""
    if images.is_file():
        return len(images.read_text(encoding="utf-8").splitlines())
    return sum(1 for _ in images.rglob("*.jpg"))


def shipped_encoders(plan: Plan) -> dict[str, Path]:
    """The checkpoints that benchmarks/demo_encoders.py made, by encoder."""
    return {arm: SHIPPED / f"{arm}.pth" for arm in plan.budget.arms if ARMS[arm]}


def convert_encoders(checkpoints: Mapping[str, Path], output: Path) -> dict[str, Path]:
    """Checkpoints to backbones, by encoder; each conversion prints what it proved."""
    weights = {}
    make_folder(output / "weights")
    for name, checkpoint in checkpoints.items():
        weights[name] = output / "weights" / f"{name}.pkl"
        conversion = convert(checkpoint, weights[name], overwrite=True)
        print("\n".join(conversion_lines(conversion)))
    return weights
