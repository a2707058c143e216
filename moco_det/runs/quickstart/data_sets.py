"""The data of a quickstart: painted scenes, or a checked data set of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from moco_det.data import check_images, coco_uri, load_dataset, voc_uri
from moco_det.data.check import check_crowds, choose_masks, crowd_warning, overlap_warnings
from moco_det.data.crops import largest_objects
from moco_det.data.folder_files import FoundData
from moco_det.data.layouts import split_coco
from moco_det.data.scenes import write_scenes
from moco_det.foundation.atomic import write_text
from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import read_json
from moco_det.runs.quickstart.plan import Budget, QuickstartPlan, recall, setting_name

PAINTED = ("striped_disk", "checked_square", "dotted_triangle", "ringed_star")
CLOSE_UPS, LABELLED = 10_000, 100


def painted_data(
    output: Path,
    budget: Budget,
    *,
    labels: Sequence[int],
    pretrain: bool,
    architecture: str = "",
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
    setting = setting_name(detector, architecture)
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
        architecture=architecture,
    )


def write_first_images(annotations: Path, part: Path, number: int) -> None:
    """The first `number` images of a COCO file with their objects: larger parts hold smaller."""
    content = read_json(annotations, "annotation file")
    content["images"] = content["images"][:number]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
    part.parent.mkdir(parents=True, exist_ok=True)
    write_text(part, json.dumps(content) + "\n")


def own_data(
    output: Path,
    budget: Budget,
    *,
    source: str,
    find: Callable[[Path], FoundData],
    architecture: str = "",
    strict: bool,
) -> QuickstartPlan:
    """Data of one's own, checked; its training images without labels are pre-trained on.

    `find` is given a folder to write into what a layout needs. Photos without labels give a plan
    without data sets.
    """
    if Path(source) == output:
        raise InputError(f"-o {output} is the folder of your data: name another one")
    before = recall(output).get("source", source)
    if before != source:  # what is found may be written down
        raise InputError(f"{output} holds results of {before}: name another folder with -o")
    found = find(output / "data")
    print(found.said)
    unlabelled, detector = output / "unlabelled.txt", "quick/own_R18_w0.5x_FPN.yaml"
    if not found.uris:
        if architecture:
            raise InputError(f"{found.said}: --weights is compared on labelled images")
        return photos_alone(found, output, budget, detector, source=source)
    train_set = load_dataset(found.uris[0])
    test_set = load_dataset(found.uris[1], classes=train_set.classes)
    for overlap in overlap_warnings(train_set, test_set):
        raise InputError(f"{overlap}: name disjoint splits with --train-split and --test-split")
    train_set = check_images(train_set, strict=strict)
    test_set = check_images(test_set, strict=strict)
    for part in (train_set, test_set):
        check_crowds(part)
        if not largest_objects(part):
            raise InputError(
                f"all {part.objects} objects of {part.name} are difficult or crowd regions, which "
                "are not scored: correct the flags"
            )
        counts = f"{len(part)} images, {part.objects} objects, {len(part.classes)} classes"
        print(f"{part.name}: {counts}")
        for line in (*part.skipped, *crowd_warning(part)):
            print(f"  warning: {line}")
    if len(train_set) < 2:
        raise InputError(f"{train_set.name} has one image: at least two are needed to train on")
    mask_format, why = choose_masks(train_set, test_set)
    print(why)
    return QuickstartPlan(
        train={setting_name(detector, architecture): found.uris[0]},
        test=found.uris[1],
        unlabelled="" if architecture else str(unlabelled),
        classes=len(train_set.classes),
        masks=bool(mask_format),
        detector=detector,
        budget=budget,
        mask_format=mask_format or "polygon",
        source=source,
        architecture=architecture,
    )


def photos_alone(
    found: FoundData, output: Path, budget: Budget, detector: str, *, source: str
) -> QuickstartPlan:
    """The plan of pre-training on photos without labels, which ends with a converted backbone."""
    arms = tuple(arm for arm in budget.arms if arm not in ("random", "supervised"))
    if not arms or len(found.photos) < 2:
        raise InputError(
            f"{found.said}: pre-training without labels needs two photos and --arms moco or "
            "instdisc"
        )
    listed = output / "data" / "photos.txt"
    write_text(listed, "".join(f"{photo}\n" for photo in found.photos))
    budget = replace(budget, arms=arms)
    return QuickstartPlan({}, "", str(listed), 0, False, detector, budget, source=source)


def voc_data(root: Path, train: str | None, test: str | None, made: Path) -> FoundData:
    """The splits of a VOC folder asked for, or the usual ones that exist."""
    there = {file.stem for file in (root / "ImageSets" / "Main").glob("*.txt")}
    if not there:
        raise InputError(
            f"--voc {root} has no ImageSets/Main/*.txt: --data {root} finds other layouts and "
            "makes a split"
        )
    # trainval holds val, so that the two cannot be trained and tested on
    wanted_test = test or ("test" if "test" in there else "val")
    usual = ("train",) if wanted_test == "val" and "train" in there else ("trainval", "train")
    wanted_train = train or next((name for name in usual if name in there), "trainval")
    uris = tuple(voc_uri(root.resolve(), split) for split in (wanted_train, wanted_test))
    return FoundData(f"{root}: {wanted_train} is trained, {wanted_test} tested on", uris)


def coco_data(files: Sequence[Path], images: Sequence[Path], made: Path) -> FoundData:
    """A training and a test file, each with its folder of images, or one file for both."""
    if len(files) == 1:
        return split_coco(files[0].resolve(), images[0].resolve(), made / files[0].stem)
    uris = tuple(map(coco_uri, (f.resolve() for f in files), (i.resolve() for i in images)))
    return FoundData(f"{files[0]} is trained, {files[1]} tested on", uris)
