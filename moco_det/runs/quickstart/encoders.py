"""The encoders of the arms: how they are pre-trained, and their conversion with proof."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from moco_det.data import check_images, load_dataset
from moco_det.data.crops import (
    BACKGROUND,
    largest_objects,
    write_crops,
    write_image_list,
)
from moco_det.foundation.atomic import make_folder
from moco_det.foundation.errors import InputError
from moco_det.runs.quickstart.plan import ARMS, QuickstartPlan
from moco_det.runs.suites.processes import Job
from moco_det.settings import zoo
from moco_det.weights.convert import convert
from moco_det.weights.summaries import conversion_lines
from moco_det.weights.timm_checkpoint import read_any

# Batch of all encoders; fewer images than that are a batch, so that none is in it twice.
BATCH = 128
QUEUE = 512
# Shorter sides of objects to cut out, in pixels; below it where no object is as large.
SMALLEST = 16
# Encoders of the painted world, for who has no time to pre-train them.
SHIPPED = Path(__file__).parent / "checkpoints"
# kNN accuracy is measured so often while an encoder learns.
MEASURED = 5
PRETRAIN = (sys.executable, "-m", "moco_det_tools.pretrain")


def encoder_name(plan: QuickstartPlan, arm: str, setting: str) -> str:
    """The encoder of an arm in a setting: a supervised one has seen that setting's labels."""
    return f"{arm}{setting.removeprefix(plan.setting)}" if arm == "supervised" else arm


def encoder_jobs(plan: QuickstartPlan, output: Path, *, device: str, strict: bool) -> list[Job]:
    """Pre-training by encoder: the same steps, images per step and architecture for all of them.

    Contrastive encoders see the unlabelled pictures, supervised ones the labelled objects, cut
    out. The neighbours of the cut-outs are the watch on what the former learn.
    """
    crops = cut_crops(plan, output, strict=strict)
    labelled = [folder for folder in crops.values() if len(list(folder.iterdir())) > 1]
    watched = max(labelled, key=count_images, default=None)
    steps, jobs = plan.budget.pretrain_steps, {}
    for arm in filter(ARMS.get, plan.budget.arms):
        for setting in plan.train or [plan.setting]:
            name = encoder_name(plan, arm, setting)
            images = crops[setting] if arm == "supervised" else Path(plan.unlabelled)
            count, folder = count_images(images), output / "pretrain" / name
            batch = min(BATCH, count)
            keys = {
                "DATA.PATH": images,
                "DATA.STRICT": strict,
                "OUTPUT_DIR": folder,
                "SOLVER.MAX_ITER": steps,
                "SOLVER.BATCH": batch,
                # a queue with several keys of one image would call that image its own negative
                "MOCO.K": max(batch, min(QUEUE, count // 2)),
                "SEED": plan.budget.seed,
                "DEVICE": device,
                # on a GPU the main process must not wait for the views
                "DATA.WORKERS": 4 if device == "cuda" else 0,
            }
            if Path(plan.unlabelled).is_file():  # photographs of one's own, of any size
                keys |= {"DATA.SHORTER_SIDE": 64}
            if arm != "supervised" and watched is not None:
                epochs = steps / (count // batch)
                keys |= {"KNN.TRAIN": watched, "KNN.EVERY": round(epochs / MEASURED, 3)}
            command = [*PRETRAIN, "--config-file", zoo.get_config_file(str(ARMS[arm])), "--resume"]
            command += [str(word) for pair in keys.items() for word in pair]
            jobs[name] = Job(name, command, folder, steps)
    return list(jobs.values())


def cut_crops(plan: QuickstartPlan, output: Path, *, strict: bool) -> dict[str, Path]:
    """The folder of cut-out objects of each setting; images that do not open are left out.

    Objects of one class are cut out beside parts of the images without any. Writes the list of
    images to pre-train on, where they are one's own.
    """
    crops = {name: output / f"crops{name.removeprefix(plan.setting)}" for name in plan.train}
    for setting, folder in crops.items():
        if not folder.is_dir():
            dataset = check_images(load_dataset(plan.train[setting]), strict=strict, progress=False)
            sides = largest_objects(dataset)
            smallest = min(SMALLEST, max(sides.values()))
            one = sum(side >= smallest for side in sides.values()) < 2
            counts = write_crops(dataset, folder, minimum=smallest, background=one)
            if one and not counts[BACKGROUND] and "supervised" in plan.budget.arms:
                shutil.rmtree(folder)
                others = " ".join(arm for arm in plan.budget.arms if arm != "supervised")
                raise InputError(
                    f"{dataset.name} has one class and no place without an object to tell it from: "
                    f"leave the supervised arm out with --arms {others}"
                )
            if plan.unlabelled.endswith(".txt"):
                write_image_list(dataset, plan.unlabelled)
    return crops


def notes(plan: QuickstartPlan, output: Path) -> list[str]:
    """What the report says of labels that the data do not have."""
    background = output / "crops" / BACKGROUND
    if "supervised" not in plan.budget.arms or not background.parent.is_dir():
        return []
    if not background.is_dir():
        seen = len(list(background.parent.iterdir()))
        missing = f"{plan.classes - seen} of {plan.classes} classes have no object of {SMALLEST} px"
        return [f"{missing}: the supervised encoder sees none of them."] * (seen < plan.classes)
    parts = count_images(background)
    objects = count_images(background.parent) - parts
    return [
        f"There are objects of one class to learn from: the supervised encoder tells {objects} "
        f"cut-out objects from {parts} parts of the same images that touch no object."
    ]


def count_images(images: Path) -> int:
    """Images in a folder, with or without folders of classes, or lines of a list."""
    if images.is_file():
        return len(images.read_text(encoding="utf-8").splitlines())
    return sum(1 for _ in images.rglob("*.jpg"))


def shipped_encoders(plan: QuickstartPlan) -> dict[str, Path]:
    """The checkpoints that benchmarks/demo_encoders.py made, by encoder."""
    return {arm: SHIPPED / f"{arm}.pth" for arm in plan.budget.arms if ARMS[arm]}


def shared_architecture(given: Mapping[str, Path]) -> str:
    """The one network that all checkpoints are of, InputError where they differ; "" of none."""
    sources = {arm: read_any(file) for arm, file in given.items()}
    for source in sources.values():
        source.known_input()
    found = {arm: source.architecture for arm, source in sources.items()}
    if len(set(found.values())) > 1:
        shown = ", ".join(f"{arm} is a {name}" for arm, name in found.items())
        raise InputError(
            f"--weights: {shown}: arms are compared in one detector, so give checkpoints of one "
            "network"
        )
    return next(iter(found.values()), "")


def convert_encoders(
    checkpoints: Mapping[str, Path], output: Path
) -> tuple[dict[str, Path], list[str]]:
    """Checkpoints to backbones, by encoder, and the warnings of their conversion.

    Each conversion prints what it proved.
    """
    weights, warnings = {}, []
    make_folder(output / "weights")
    for name, checkpoint in checkpoints.items():
        weights[name] = output / "weights" / f"{name}.pkl"
        conversion = convert(checkpoint, weights[name], overwrite=True)
        print("\n".join(conversion_lines(conversion)))
        warnings += [f"Warning: {name}: {warning}." for warning in conversion.warnings]
    return weights, warnings
