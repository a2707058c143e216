"""The data of a quickstart: painted scenes, or a checked data set of one's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from moco_det.data import check_images, coco_uri, load_dataset, voc_uri
from moco_det.data.check import overlap_warnings
from moco_det.data.scenes import write_scenes
from moco_det.foundation.atomic import write_text
from moco_det.foundation.errors import InputError
from moco_det.runs.quickstart.plan import Budget, QuickstartPlan

PAINTED = ("striped_disk", "checked_square", "dotted_triangle", "ringed_star")
CLOSE_UPS, LABELLED = 10_000, 100


def painted_data(
    output: Path, budget: Budget, *, labels: Sequence[int], pretrain: bool
) -> QuickstartPlan:
    """Labelled scenes of textured shapes, a test set and close-ups without labels to pre-train on.

    `labels` are numbers of labelled scenes to fine-tune on, all of them where it is empty. Without
    `pretrain` there are no close-ups.
    """
    too_many = [number for number in labels if not 1 <= number <= LABELLED]
    if too_many:
        raise InputError(f"--labels {too_many[0]}: there are {LABELLED} labelled scenes")
    paths = write_scenes(
        output / "scenes",
        seed=budget.seed,
        unlabelled=CLOSE_UPS if pretrain else 0,
        train=LABELLED,
        test=150,
        size=96,
        classes=PAINTED,
        objects=(1, 4),
    )
    detector = "quick/demo_R18_FPN.yaml"
    setting = Path(detector).stem
    train = {}
    for number in sorted(labels) or [LABELLED]:
        if number == LABELLED:
            train[setting] = paths.train
        else:
            part = output / "labels" / f"train_{number}.json"
            write_first_images(paths.train_json, part, number)
            train[f"{setting}_{number}_images"] = coco_uri(part, paths.train_images)
    return QuickstartPlan(
        train=train,
        test=paths.test,
        unlabelled=str(paths.unlabelled) if pretrain else "",
        classes=len(PAINTED),
        masks=True,
        detector=detector,
        budget=budget,
    )


def write_first_images(annotations: Path, part: Path, number: int) -> None:
    """The first `number` images of a COCO file with their objects: larger parts hold smaller."""
    content = json.loads(annotations.read_text(encoding="utf-8"))
    content["images"] = content["images"][:number]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
    part.parent.mkdir(parents=True, exist_ok=True)
    write_text(part, json.dumps(content) + "\n")


def own_data(
    output: Path, budget: Budget, *, train: str, test: str, strict: bool
) -> QuickstartPlan:
    """A data set of one's own, checked; its training images without labels are pre-trained on.

    Nothing is written yet: the folder may hold the results of other settings.
    """
    train_set = load_dataset(train)
    test_set = load_dataset(test, classes=train_set.classes)
    for overlap in overlap_warnings(train_set, test_set):
        raise InputError(f"{overlap}: name disjoint splits with --train-split and --test-split")
    if len(train_set.classes) < 2 and "supervised" in budget.arms:
        others = " ".join(arm for arm in budget.arms if arm != "supervised")
        raise InputError(
            f"{train_set.name} has one class, and the supervised arm learns to tell classes "
            f"apart: leave it out with --arms {others}"
        )
    train_set = check_images(train_set, strict=strict)
    test_set = check_images(test_set, strict=strict)
    for part in (train_set, test_set):
        counts = f"{len(part)} images, {part.objects} objects, {len(part.classes)} classes"
        print(f"{part.name}: {counts}")
        for line in part.skipped:
            print(f"  warning: {line}")
    detector = "quick/own_R18_w0.5x_FPN.yaml"
    return QuickstartPlan(
        train={Path(detector).stem: train},
        test=test,
        unlabelled=str(output / "unlabelled.txt"),
        classes=len(train_set.classes),
        masks=train_set.has_masks,
        detector=detector,
        budget=budget,
    )


def voc_uris(root: Path, train: str | None, test: str | None) -> tuple[str, str]:
    """The splits asked for, or the usual ones that exist."""
    there = {file.stem for file in (root / "ImageSets" / "Main").glob("*.txt")}
    if not there:
        raise InputError(f"--voc {root} has no ImageSets/Main/*.txt: name a folder in VOC layout")
    # trainval holds val, so that the two cannot be trained and tested on
    wanted_test = test or ("test" if "test" in there else "val")
    usual = ("train",) if wanted_test == "val" and "train" in there else ("trainval", "train")
    wanted_train = train or next((name for name in usual if name in there), "trainval")
    return voc_uri(root.resolve(), wanted_train), voc_uri(root.resolve(), wanted_test)


def coco_uris(files: Sequence[Path], images: Sequence[Path]) -> tuple[str, str]:
    """The training and the test file, each with its folder of images."""
    train, test = map(coco_uri, (f.resolve() for f in files), (i.resolve() for i in images))
    return train, test
