"""The parts of quickstart: which encoders and runs a plan asks for, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from moco_det.data import coco_uri, load_dataset
from moco_det.data.scenes import ScenesPaths, write_scenes
from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.runs.quickstart import encoders
from moco_det.runs.quickstart.data_sets import (
    own_data,
    painted_data,
    voc_uris,
    write_first_images,
)
from moco_det.runs.quickstart.flow import build_runs, jobs_without_encoder
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


def test_one_class_is_refused_for_the_supervised_arm_with_the_way_out(
    scenes: ScenesPaths, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        content = json.loads(getattr(scenes, f"{split}_json").read_text())
        for row in content["annotations"]:
            row["category_id"] = 1
        content["categories"] = content["categories"][:1]
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    train = coco_uri(tmp_path / "train.json", scenes.train_images)
    test = coco_uri(tmp_path / "test.json", scenes.test_images)
    with pytest.raises(InputError, match="leave it out with --arms random moco"):
        own_data(tmp_path / "out", BUDGET, train=train, test=test, strict=False)
    assert not (tmp_path / "out").exists()
    alone = replace(BUDGET, arms=("random", "moco"))
    assert own_data(tmp_path / "out", alone, train=train, test=test, strict=False).classes == 1
    assert not (tmp_path / "out").exists()


def test_images_that_are_trained_and_tested_on_are_refused(
    scenes: ScenesPaths, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="12 of 12 test images .* name disjoint splits"):
        own_data(tmp_path, BUDGET, train=scenes.train, test=scenes.train, strict=False)


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
    with pytest.raises(InputError, match="name a folder in VOC layout"):
        voc_uris(tmp_path, None, None)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name in there:
        (lists / f"{name}.txt").touch()
    uris = voc_uris(tmp_path, None, None)
    assert [uri.partition("?split=")[2] for uri in uris] == [train, test]
    assert voc_uris(tmp_path, "mine", "yours")[1].endswith("?split=yours")


def test_a_broken_image_of_ones_own_is_left_out_of_both_encoders(
    scenes: ScenesPaths, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(scenes.train_images, images)
    (images / "000003.jpg").write_bytes(b"no image")
    train, output = coco_uri(scenes.train_json, images), tmp_path / "out"
    plan = own_data(output, BUDGET, train=train, test=scenes.test, strict=False)
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
    weights = encoders.convert_encoders(checkpoints, tmp_path)
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
