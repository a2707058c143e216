"""The parts of quickstart: which encoders and runs a plan asks for, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision

from moco_det.data import coco_uri, load_dataset
from moco_det.data.folder_files import FoundData
from moco_det.data.scenes import ScenesPaths
from moco_det.foundation.errors import InputError
from moco_det.foundation.folders import claimed
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.runs.quickstart import encoders
from moco_det.runs.quickstart.data_sets import (
    own_data,
    painted_data,
    write_first_images,
)
from moco_det.runs.quickstart.flow import build_runs, compare, jobs_without_encoder
from moco_det.runs.quickstart.plan import QuickstartPlan, remember
from moco_det.weights.backbone import load_backbone
from moco_det_tools.quickstart import main
from pretrain.config import load_config

from .conftest import BUDGET


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


def test_data_that_are_refused_leave_no_folder(tmp_path: Path) -> None:
    painted = partial(painted_data, labels=[101], pretrain=False)
    with pytest.raises(InputError, match="there are 100 labelled"):
        compare(painted, BUDGET, tmp_path / "out", device="cpu", strict=False, given={})
    assert not (tmp_path / "out").exists()


def test_a_second_quickstart_in_a_folder_is_refused_and_the_next_owner_cleans_up(
    plan: QuickstartPlan, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    left = [output / name for name in (".report.html.1.partial", "weights/.moco.pkl.1.partial")]

    refused = pytest.raises(InputError, match="another run is writing .* choose another --output")
    with claimed(output), refused:
        compare(lambda *_: plan, BUDGET, output, device="cpu", strict=False, given={})
    for file in left:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    (output / "quickstart.json").write_text("{")  # refused once the folder is claimed
    with pytest.raises(InputError, match="damaged"):
        compare(lambda *_: plan, BUDGET, output, device="cpu", strict=False, given={})
    assert not any(file.exists() for file in left)
