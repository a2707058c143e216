"""The parts of quickstart: which encoders and runs a plan asks for, and what is refused."""

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
import torch
import torchvision

from moco_det.data import coco_uri, load_dataset
from moco_det.data.crops import BACKGROUND
from moco_det.data.folder_files import FoundData
from moco_det.data.layouts import find_data
from moco_det.data.scenes import ScenesPaths, write_scenes
from moco_det.foundation.errors import InputError
from moco_det.foundation.folders import claimed
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.runs.quickstart import encoders
from moco_det.runs.quickstart.data_sets import (
    own_data,
    painted_data,
    voc_data,
    write_first_images,
)
from moco_det.runs.quickstart.flow import build_runs, compare, jobs_without_encoder
from moco_det.runs.quickstart.plan import Budget, QuickstartPlan, remember
from moco_det.weights.backbone import load_backbone
from moco_det_tools.quickstart import main
from pretrain.config import load_config

BUDGET = Budget(
    arms=("random", "supervised", "moco"), seed=3, seeds=2, pretrain_steps=40, finetune_steps=20
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> ScenesPaths:
    folder = tmp_path_factory.mktemp("scenes") / "set"
    return write_scenes(folder, seed=1, unlabelled=40, train=12, test=4, size=64, progress=False)


@pytest.fixture
def plan(scenes: ScenesPaths, tmp_path: Path) -> QuickstartPlan:
    """All twelve images, and the first five of them."""
    made = QuickstartPlan(
        train={},
        test=scenes.test,
        unlabelled=str(scenes.unlabelled),
        classes=len(scenes.classes),
        masks=True,
        detector="quick/demo_R18_FPN.yaml",
        budget=BUDGET,
    )
    part = tmp_path / "labels" / "train_5.json"
    write_first_images(scenes.train_json, part, 5)
    made.train["demo_R18_FPN"] = scenes.train
    made.train["demo_R18_FPN_5_images"] = coco_uri(part, scenes.train_images)
    return made


def test_the_first_images_keep_their_objects_and_no_others(
    plan: QuickstartPlan, scenes: ScenesPaths
) -> None:
    whole = load_dataset(scenes.train)
    part = load_dataset(plan.train["demo_R18_FPN_5_images"])
    assert part.classes == whole.classes
    assert [r.annotations for r in part.records] == [r.annotations for r in whole.records[:5]]


def test_encoders_differ_in_what_they_see_alone(plan: QuickstartPlan, tmp_path: Path) -> None:
    jobs = encoders.encoder_jobs(plan, tmp_path, device="cpu", strict=False)
    assert [job.name for job in jobs] == ["supervised", "supervised_5_images", "moco"]
    configs = {}
    for job in jobs:
        config, *overrides = job.command[job.command.index("--config-file") + 1 :]
        assert overrides.pop(0) == "--resume"
        configs[job.name] = load_config(config, overrides)
    moco, supervised = configs["moco"], configs["supervised"]
    assert moco.ENCODER.ARCH == supervised.ENCODER.ARCH
    assert moco.AUGMENT == supervised.AUGMENT and moco.SOLVER.SCHEDULE == supervised.SOLVER.SCHEDULE
    assert moco.SOLVER.MAX_ITER == supervised.SOLVER.MAX_ITER == 40
    assert moco.SEED == supervised.SEED == 3
    # no more images in a batch, and no more keys in the queue, than there are images
    assert moco.SOLVER.BATCH == moco.MOCO.K == 40
    few = configs["supervised_5_images"]
    assert few.SOLVER.BATCH == encoders.count_images(Path(few.DATA.PATH)) < supervised.SOLVER.BATCH
    # the watch votes by labelled cut-outs; a supervised encoder has been trained on them
    assert moco.KNN.TRAIN == supervised.DATA.PATH and not supervised.KNN.TRAIN


def test_runs_of_a_setting_differ_in_weights_and_seeds_alone(plan: QuickstartPlan) -> None:
    plan = replace(plan, budget=replace(BUDGET, arms=("random",)))
    runs = build_runs(plan, {}, device="cpu")
    assert [(run.setting.name, run.seed) for run in runs] == [
        ("demo_R18_FPN", 300),
        ("demo_R18_FPN", 301),
        ("demo_R18_FPN_5_images", 300),
        ("demo_R18_FPN_5_images", 301),
    ]
    first, other = runs[0].setting.keys, runs[2].setting.keys
    assert {key for key in first if first[key] != other[key]} == {"DATASETS.TRAIN"}
    assert first["SOLVER.MAX_ITER"] == 20 and first["MODEL.MASK_ON"] is True


def test_runs_without_encoder_are_those_of_the_matrix(plan: QuickstartPlan, tmp_path: Path) -> None:
    jobs = jobs_without_encoder(plan, tmp_path, device="cpu")
    alone = replace(plan, budget=replace(BUDGET, arms=("random",)))
    runs = build_runs(alone, {}, device="cpu")
    assert [job.folder for job in jobs] == [run.folder(tmp_path) for run in runs]
    for job, run in zip(jobs, runs, strict=True):
        assert job.command[3:] == run.options(tmp_path)
        assert run.config_file(tmp_path).read_text() == run.setting.text
    nobody = replace(plan, budget=replace(BUDGET, arms=("moco",)))
    assert jobs_without_encoder(nobody, tmp_path, device="cpu") == []


def test_a_folder_takes_more_runs_and_no_other_settings(
    plan: QuickstartPlan, tmp_path: Path
) -> None:
    remember(plan, tmp_path)
    remember(replace(plan, budget=replace(BUDGET, seeds=5, arms=("random", "moco"))), tmp_path)
    with pytest.raises(InputError, match=r"\(seed differ\)"):
        remember(replace(plan, budget=replace(BUDGET, seed=4)), tmp_path)
    (tmp_path / "quickstart.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        remember(plan, tmp_path)


def test_more_labelled_scenes_than_there_are_is_refused_before_painting(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--labels 101: there are 100"):
        painted_data(tmp_path, BUDGET, labels=[10, 101], pretrain=True)
    assert list(tmp_path.iterdir()) == []


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


def test_checkpoints_that_are_brought_give_the_detector_their_resnet(
    scenes: ScenesPaths, tmp_path: Path
) -> None:
    given = {"dense": encoders.SHIPPED / "moco.pth"}
    architecture = encoders.shared_architecture(given)
    plan = own_data(
        tmp_path,
        replace(BUDGET, arms=("random", "dense")),
        source="",
        find=lambda _: FoundData("", (scenes.train, scenes.test)),
        architecture="resnet34",
        strict=False,
    )
    assert architecture == "resnet18_w0.5x" and list(plan.train) == ["own_resnet34_FPN"]
    alone = replace(plan, budget=replace(BUDGET, arms=("random",)))
    keys = build_runs(alone, {}, device="cpu")[0].setting.keys
    assert keys["MODEL.RESNETS.DEPTH"] == 34 and keys["MODEL.RESNETS.STEM_OUT_CHANNELS"] == 64


def test_checkpoints_of_two_resnets_are_refused_by_name(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "whole.pth")
    given = {"moco": encoders.SHIPPED / "moco.pth", "sup": tmp_path / "whole.pth"}
    with pytest.raises(InputError, match="moco is a resnet18_w0.5x, sup is a resnet18: arms"):
        encoders.shared_architecture(given)


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


def test_the_encoders_that_ship_convert_with_proof_and_are_small(tmp_path: Path) -> None:
    plan = painted_data(tmp_path / "set", BUDGET, labels=[100], pretrain=False)
    checkpoints = encoders.shipped_encoders(plan)
    assert list(checkpoints) == ["supervised", "moco"] and not plan.unlabelled
    assert all(file.stat().st_size < 8 * 2**20 for file in checkpoints.values())
    weights, warnings = encoders.convert_encoders(checkpoints, tmp_path)
    assert not warnings
    architectures = {load_backbone(file).architecture for file in weights.values()}
    keys = {"DEPTH": 18, "STEM_OUT_CHANNELS": 32, "RES2_OUT_CHANNELS": 32}
    found = [ARCHITECTURES[name].keys for name in architectures if name]
    assert len(found) == 1
    assert {f"MODEL.RESNETS.{key}": value for key, value in keys.items()}.items() <= found[
        0
    ].items()
    # what fine_tune runs has the same ResNet
    for run in build_runs(plan, weights, device="cpu"):
        assert all(run.setting.keys[key] == found[0][key] for key in found[0] if "CHANNELS" in key)


@pytest.mark.parametrize(
    "option", [["--labels", "10"], ["--arms", "instdisc"], ["--pretrain-steps", "9"]]
)
def test_what_needs_encoders_of_its_own_says_so_before_anything_is_written(
    option: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="add --pretrain"):
        main([*option, "-o", str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_of_random_weights_is_warned_of(tmp_path: Path) -> None:
    network = torchvision.models.resnet18()
    torch.save(network.state_dict(), tmp_path / "a.pth")
    _, (warning,) = encoders.convert_encoders({"mine": tmp_path / "a.pth"}, tmp_path)
    assert warning.startswith("Warning: mine: ")


def test_a_second_quickstart_in_a_folder_is_refused_and_the_next_owner_cleans_up(
    plan: QuickstartPlan, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    left = [output / name for name in (".report.html.1.partial", "weights/.moco.pkl.1.partial")]

    with claimed(output):
        with pytest.raises(InputError, match="another run is writing .* choose another --output"):
            painted_data(output, BUDGET, labels=[], pretrain=False)
        with pytest.raises(InputError, match="another run is writing into"):
            compare(lambda *_: plan, BUDGET, output, device="cpu", strict=False, given={})
    for file in left:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    (output / "quickstart.json").write_text("{")  # refused once the folder is claimed
    with pytest.raises(InputError, match="damaged"):
        compare(lambda *_: plan, BUDGET, output, device="cpu", strict=False, given={})
    assert not any(file.exists() for file in left)
