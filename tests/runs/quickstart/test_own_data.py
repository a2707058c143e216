"""Quickstart on data of one's own: what is checked, cut out, told and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pycocotools.mask
import pytest

from moco_det.data import coco_uri, load_dataset
from moco_det.data.crops import BACKGROUND
from moco_det.data.folder_files import FoundData
from moco_det.data.layouts import find_data
from moco_det.data.scenes import ScenesPaths
from moco_det.foundation.errors import InputError
from moco_det.runs.quickstart import encoders
from moco_det.runs.quickstart.data_sets import (
    own_data,
    voc_data,
)
from moco_det.runs.quickstart.flow import build_runs
from moco_det.runs.quickstart.plan import QuickstartPlan, remember
from pretrain.config import load_config

from .conftest import BUDGET


def prepare(output: Path, *uris: str, said: str = "two files") -> QuickstartPlan:
    return own_data(output, BUDGET, source=said, find=lambda _: FoundData(said, uris), strict=False)


def changed(
    scenes: ScenesPaths, folder: Path, change: Callable[[dict[str, Any]], None]
) -> tuple[str, str]:
    """Both splits with every annotation changed."""
    for split in ("train", "test"):
        content = json.loads(getattr(scenes, f"{split}_json").read_text())
        for row in content["annotations"]:
            change(row)
        (folder / f"{split}.json").write_text(json.dumps(content))
    return (
        coco_uri(folder / "train.json", scenes.train_images),
        coco_uri(folder / "test.json", scenes.test_images),
    )


def test_objects_of_one_class_are_told_from_parts_of_the_images_without_any(
    scenes: ScenesPaths, tmp_path: Path
) -> None:
    uris = changed(scenes, tmp_path, lambda row: row.update(category_id=1))
    output = tmp_path / "out"
    plan = prepare(output, *uris)
    assert not output.exists()
    jobs = encoders.encoder_jobs(plan, output, device="cpu", strict=False)
    assert [job.name for job in jobs] == ["supervised", "moco"]
    crops = {folder.name: encoders.count_images(folder) for folder in (output / "crops").iterdir()}
    assert len(crops) == 2 and 0 < crops[BACKGROUND] <= min(crops.values())
    assert f"cut-out objects from {crops[BACKGROUND]} parts" in encoders.notes(plan, output)[0]


def test_one_class_that_fills_its_images_is_refused_for_the_supervised_arm_alone(
    scenes: ScenesPaths, tmp_path: Path
) -> None:
    uris = changed(scenes, tmp_path, lambda row: row.update(category_id=1, bbox=[0, 0, 64, 64]))
    plan = prepare(tmp_path / "out", *uris)
    with pytest.raises(InputError, match="leave the supervised arm out with --arms random moco"):
        encoders.encoder_jobs(plan, tmp_path / "out", device="cpu", strict=False)
    alone = replace(plan, budget=replace(BUDGET, arms=("random", "moco")))
    jobs = encoders.encoder_jobs(alone, tmp_path / "out", device="cpu", strict=False)
    assert [job.name for job in jobs] == ["moco"] and "KNN.TRAIN" not in jobs[0].command
    assert encoders.notes(alone, tmp_path / "out") == []


def test_objects_that_are_all_smaller_than_a_crop_are_cut_out_all_the_same(
    scenes: ScenesPaths, tmp_path: Path
) -> None:
    uris = changed(scenes, tmp_path, lambda row: row.update(bbox=[row["id"] % 50, 9, 5, 5]))
    crops = encoders.cut_crops(prepare(tmp_path / "out", *uris), tmp_path / "out", strict=False)
    objects = load_dataset(uris[0]).objects
    assert [encoders.count_images(folder) for folder in crops.values()] == [objects]


def test_crowds_alone_are_refused_before_anything_is_written(
    scenes: ScenesPaths, tmp_path: Path
) -> None:
    uris = changed(scenes, tmp_path, lambda row: row.update(iscrowd=1))
    with pytest.raises(InputError, match="objects of train are crowd regions"):
        prepare(tmp_path / "out", *uris)
    with pytest.raises(InputError, match="objects of test are crowd regions"):
        prepare(tmp_path / "out", scenes.train, uris[1])
    assert not (tmp_path / "out").exists()


def test_crowds_among_others_are_told(
    scenes: ScenesPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uris = changed(scenes, tmp_path, lambda row: row.update(iscrowd=row["id"] % 2))
    prepare(tmp_path / "out", *uris)
    assert "objects are crowd regions (iscrowd 1), neither trained nor" in capsys.readouterr().out


def test_classes_without_an_object_to_cut_out_are_told(scenes: ScenesPaths, tmp_path: Path) -> None:
    def shrink(row: dict[str, Any]) -> None:
        if row["category_id"] == 1:
            row["bbox"] = [9, 9, 8, 8]

    plan = prepare(tmp_path / "out", *changed(scenes, tmp_path, shrink))
    encoders.encoder_jobs(plan, tmp_path / "out", device="cpu", strict=False)
    (note,) = encoders.notes(plan, tmp_path / "out")
    missing = plan.classes - len(list((tmp_path / "out" / "crops").iterdir()))
    assert missing and note.startswith(
        f"{missing} of {plan.classes} classes have no object of 16 px"
    )


def test_the_output_is_not_written_among_the_data(scenes: ScenesPaths, tmp_path: Path) -> None:
    find = partial(find_data, tmp_path)
    with pytest.raises(InputError, match="the folder of your data: name another"):
        own_data(tmp_path, BUDGET, source=str(tmp_path), find=find, strict=False)


def test_run_length_masks_become_bitmaps_and_a_split_without_masks_boxes_alone(
    scenes: ScenesPaths, tmp_path: Path
) -> None:
    def code(row: dict[str, Any]) -> None:
        mask = pycocotools.mask.frPyObjects(row["segmentation"], 64, 64)
        merged = pycocotools.mask.merge(mask)
        row["segmentation"] = {**merged, "counts": merged["counts"].decode()}

    uris = changed(scenes, tmp_path, code)
    plan = prepare(tmp_path / "out", *uris)
    assert plan.masks and plan.mask_format == "bitmask"
    alone = replace(plan, budget=replace(BUDGET, arms=("random",)))
    assert build_runs(alone, {}, device="cpu")[0].setting.keys["INPUT.MASK_FORMAT"] == "bitmask"
    assert not prepare(tmp_path / "out", uris[0], scenes.voc_test).masks


def test_photos_alone_are_pretrained_on_by_the_arms_without_labels(
    scenes: ScenesPaths, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    plan = own_data(
        output, BUDGET, source="photos", find=partial(find_data, scenes.train_images), strict=False
    )
    assert plan.budget.arms == ("moco",) and not plan.test
    (job,) = encoders.encoder_jobs(plan, output, device="cpu", strict=False)
    keys = load_config(job.command[4], job.command[6:])
    assert keys.SOLVER.BATCH == 12 and len(Path(keys.DATA.PATH).read_text().splitlines()) == 12
    supervised = replace(BUDGET, arms=("random", "supervised"))
    with pytest.raises(InputError, match="--arms moco or instdisc"):
        own_data(
            output, supervised, source="", find=partial(find_data, scenes.train_images), strict=True
        )


def test_a_folder_with_results_of_other_data_is_refused_before_the_split_is_written(
    scenes: ScenesPaths, tmp_path: Path
) -> None:
    remember(prepare(tmp_path, scenes.train, scenes.test), tmp_path)
    with pytest.raises(InputError, match="holds results of two files: name another"):
        prepare(tmp_path, scenes.train, scenes.test, said="others")


def test_images_that_are_trained_and_tested_on_are_refused(
    scenes: ScenesPaths, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="12 of 12 test images .* name disjoint splits"):
        prepare(tmp_path, scenes.train, scenes.train)


@pytest.mark.parametrize(
    ("there", "train", "test"),
    [
        (["train", "trainval", "val", "test"], "trainval", "test"),
        (["train", "trainval", "val"], "train", "val"),
        (["train", "test"], "train", "test"),
    ],
)
def test_the_usual_splits_of_a_voc_folder_are_taken_train_alone_where_val_is_tested_on(
    there: list[str], train: str, test: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="--data .* finds other layouts"):
        voc_data(tmp_path, None, None, tmp_path)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name in there:
        (lists / f"{name}.txt").touch()
    uris = voc_data(tmp_path, None, None, tmp_path).uris
    assert [uri.partition("?split=")[2] for uri in uris] == [train, test]
    assert voc_data(tmp_path, "mine", "yours", tmp_path).uris[1].endswith("?split=yours")


def test_a_broken_image_of_ones_own_is_left_out_of_both_encoders(
    scenes: ScenesPaths, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(scenes.train_images, images)
    (images / "000003.jpg").write_bytes(b"no image")
    train, output = coco_uri(scenes.train_json, images), tmp_path / "out"
    plan = prepare(output, train, scenes.test)
    encoders.encoder_jobs(plan, output, device="cpu", strict=False)
    listed = Path(plan.unlabelled).read_text().split()
    assert len(listed) == 11 and not any(line.endswith("000003.jpg") for line in listed)
    cut = [file.name for file in (output / "crops").rglob("*.jpg")]
    assert cut and not any(name.startswith("3_") for name in cut)
