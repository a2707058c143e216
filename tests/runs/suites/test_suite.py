"""Suite files and the keys of their runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import parse_value
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.runs.suites.matrix import (
    Run,
    SuiteArm,
    build_matrix,
    check_architecture,
    check_settings,
    read_arms,
    read_seeds,
)
from moco_det.runs.suites.suite import SuiteSetting, read_suite
from moco_det.weights import download
from tests.weights.checkpoints import trained_state

CONFIGS = Path(__file__).parents[3] / "configs"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    write(tmp_path / "base.yaml", "SOLVER: {MAX_ITER: 10, BASE_LR: 0.1}\nSEED: 3\n")
    return write(
        tmp_path / "mine.yaml",
        "seeds: 2\nsupervised: sup.pkl\nsettings:\n"
        "  - config: base.yaml\n"
        "  - {name: long, config: base.yaml, set: {SOLVER.MAX_ITER: 20, MODEL: {MASK_ON: true}}}\n",
    )


def test_a_setting_is_its_config_with_its_own_and_the_callers_changes(suite_file: Path) -> None:
    suite = read_suite(suite_file, {"SOLVER.BASE_LR": 0.2})
    assert (suite.name, suite.seeds) == ("mine", 2)
    assert suite.supervised == suite_file.parent / "sup.pkl"
    assert [setting.name for setting in suite.settings] == ["base", "long"]
    assert [setting.iterations for setting in suite.settings] == [10, 20]
    assert yaml.safe_load(suite.settings[1].text) == {
        "SOLVER": {"MAX_ITER": 20, "BASE_LR": 0.2},
        "MODEL": {"MASK_ON": True},
    }


def test_a_setting_may_name_a_config_of_the_zoo(suite_file: Path) -> None:
    write(suite_file, "settings: [{config: quick/R18_FPN}, {config: base.yaml}]")
    zoos, own = read_suite(suite_file).settings
    assert (zoos.name, zoos.keys["MODEL.RESNETS.DEPTH"]) == ("R18_FPN", 18)
    assert own.keys == {"SOLVER.MAX_ITER": 10, "SOLVER.BASE_LR": 0.1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("settings: []", "at least one setting"),
        ("sets: []", "unknown key sets in"),
        ("settings: [{config: base.yaml, sett: {}}]", "a setting: did you mean set?"),
        ("settings: [{name: a}]", "no 'config'"),
        ("settings: [{config: base.yaml}, {config: base.yaml}]", "two settings are called 'base'"),
        ("settings: [{config: base.yaml}, {config: base.yaml, name: b}]", "are the same config"),
        ("settings: [{config: gone.yaml}]", "gone.yaml does not exist"),
        ("settings: [base.yaml]", "a setting is 'base.yaml', wanted the keys name, config, set"),
        ("settings: [{config: base.yaml, set: 3}]", "set in"),
        ("settings: [{config: base.yaml, name: a/b}]", "as of a folder"),
        ("settings: [{config: base.yaml, set: {SEED: 1}}]", "SEED of base is set by the matrix"),
        ("seeds: yes\nsettings: [{config: base.yaml}]", "is True: it must be int"),
        ("supervised: 3\nsettings: [{config: base.yaml}]", "is 3: it must be str"),
        ("seeds: 0\nsettings: [{config: base.yaml}]", "seeds is 0: it must be from 1 to 1000"),
        ("seeds: 1\nseeds: 2\nsettings: [{config: base.yaml}]", "duplicate"),
    ],
)
def test_a_bad_suite_is_refused_by_name(suite_file: Path, text: str, said: str) -> None:
    write(suite_file, text)
    with pytest.raises(InputError) as caught:
        read_suite(suite_file)
    assert said in str(caught.value)


def test_every_suite_of_the_project_reads_and_says_its_cost() -> None:
    files = sorted((CONFIGS / "suites").glob("*.yaml"))
    assert {"quick", "voc", "coco"} <= {file.stem for file in files}
    for file in files:
        suite = read_suite(file)
        assert suite.settings and all(setting.iterations > 0 for setting in suite.settings)
        head = file.read_text(encoding="utf-8").splitlines()[:4]
        assert [line.split(":")[0] for line in head[1:]] == ["# Published", "# Cost", "# Command"]


def one_run(**changes: Any) -> Run:
    arm = SuiteArm("moco", Path("moco.pkl"), "a" * 64, {"format": "RGB"})
    return replace(
        Run(SuiteSetting("s", {"SOLVER.MAX_ITER": 1}), arm, 0, "standalone", "1"), **changes
    )


def test_config_weights_seed_and_engine_make_another_run_and_a_new_place_does_not() -> None:
    run = one_run()
    others = [
        one_run(setting=SuiteSetting("s", {"SOLVER.MAX_ITER": 2})),
        one_run(arm=replace(run.arm, sha256="b" * 64)),
        one_run(arm=replace(run.arm, input={"format": "BGR"})),
        one_run(seed=1),
        one_run(engine="detectron2"),
        one_run(version="2"),
    ]
    assert len({run.key, *(other.key for other in others)}) == len(others) + 1
    assert one_run(arm=replace(run.arm, weights=Path("elsewhere/moco.pkl"))).key == run.key
    assert run.name == f"moco_seed0_{run.key}"


def test_the_weights_own_input_is_given_to_the_run(tmp_path: Path) -> None:
    words = one_run().options(tmp_path)
    assert words[words.index("INPUT.FORMAT") + 1] == '"RGB"'
    assert words[words.index("SEED") + 1] == "0" and "--resume" in words
    random = one_run(arm=SuiteArm("random", None, None, {})).options(tmp_path)
    assert random[random.index("MODEL.WEIGHTS") + 1] == '""' and "INPUT.FORMAT" not in random


def test_seeds_come_first_so_that_a_stopped_matrix_is_balanced() -> None:
    arms = [SuiteArm(name, None, None, {}) for name in ("a", "b")]
    runs = build_matrix([SuiteSetting("s", {})], arms, [0, 1], engine="standalone")
    assert [(run.seed, run.arm.name) for run in runs] == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["moco"], "write NAME=FILE"),
        (["a=x.pkl", "a=y.pkl"], "given twice"),
        (["random=x.pkl"], "the random arm has no weights"),
        (["moco=gone.pkl"], "no supervised arm to compare with"),
        (["sup=gone.pkl"], "gone.pkl does not exist"),
    ],
)
def test_bad_weights_are_refused_before_the_first_run(words: list[str], said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_arms(words)
    assert said in str(caught.value)


def test_weights_of_another_resnet_are_refused_before_the_first_run() -> None:
    same = SuiteSetting("s", dict(ARCHITECTURES["resnet18"].keys))
    narrow = SuiteSetting("narrow", dict(ARCHITECTURES["resnet18_w0.5x"].keys))
    arm = SuiteArm("moco", Path("moco.pkl"), "a" * 64, {}, "resnet18")
    check_architecture(same, arm)
    check_architecture(same, SuiteArm("random", None, None, {}))
    with pytest.raises(InputError, match=r"moco\.pkl .* resnet18, .* default .*DEPTH 50"):
        check_architecture(SuiteSetting("default", {}), arm)
    with pytest.raises(InputError, match=r"--set MODEL\.RESNETS\.STEM_OUT_CHANNELS 64 --set"):
        check_architecture(narrow, arm)
    check_architecture(narrow, replace(arm, architecture="resnet18_w0.5x"))


def test_a_setting_with_a_frozen_backbone_has_no_random_arm() -> None:
    keys = {
        **ARCHITECTURES["resnet50"].keys,
        **{"DATASETS.TRAIN": ["a"], "DATASETS.TEST": ["b"], "MODEL.BACKBONE.FREEZE_AT": 0},
        "MODEL.RESNETS.NORM": "SyncBN",
    }
    settings = [
        SuiteSetting("full", keys),
        SuiteSetting("frozen", {**keys, "MODEL.BACKBONE.FREEZE_AT": 5}),
    ]
    random, moco = (
        SuiteArm("random", None, None, {}),
        SuiteArm("moco", Path("moco.pkl"), "a" * 64, {}),
    )
    assert not check_settings(settings, [random, moco], engine="standalone")
    runs = build_matrix(settings, [random, moco], [0], engine="standalone")
    found = [(run.setting.name, run.arm.name) for run in runs]
    assert found == [("full", "random"), ("full", "moco"), ("frozen", "moco")]
    with pytest.raises(InputError, match="FREEZE_AT 5 would freeze randomly initialised stages"):
        check_settings(settings, [random], engine="standalone")


def test_a_setting_that_never_lowers_its_rate_is_a_warning() -> None:
    keys = {"DATASETS.TRAIN": ["a"], "DATASETS.TEST": ["b"], "SOLVER.MAX_ITER": 9000}
    keys["SOLVER.STEPS"] = "(6000, 30000)"  # as detectron2's own files have it
    settings = [SuiteSetting("short", {**ARCHITECTURES["resnet50"].keys, **keys})]
    moco = SuiteArm("moco", Path("moco.pkl"), "a" * 64, {})
    (line,) = check_settings(settings, [moco], engine="standalone")
    assert line.startswith("the setting short: SOLVER.MAX_ITER 9000") and "at 30000" in line


def test_seeds_are_read_or_refused() -> None:
    assert read_seeds(None, 3) == [0, 1, 2] and read_seeds("2", 3) == [0, 1]
    assert read_seeds("0,7", 3) == [0, 7] and read_seeds("7,", 3) == [7]
    for bad in ("0", "a", "1,1", "-1,2", ",", "3,,", "9" * 20, "0," + "9" * 20):
        with pytest.raises(InputError, match="--seeds"):
            read_seeds(bad, 3)


def test_a_value_that_python_cannot_make_is_text() -> None:
    assert parse_value("{[]: 1}") == "{[]: 1}" and parse_value("x") == "x"
    assert parse_value("(1, 2)") == [1, 2]


def test_random_and_supervised_are_there_unless_refused(tmp_path: Path) -> None:
    assert [arm.name for arm in read_arms([], supervised=False)] == ["random"]
    with pytest.raises(InputError, match="nothing to run"):
        read_arms([], random=False, supervised=False)
    with pytest.raises(InputError, match=r"default\.pkl is not there"):
        read_arms([], default_supervised=tmp_path / "default.pkl")


def test_a_checkpoint_of_anybodys_becomes_an_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    state = trained_state("resnet18", seed=1)
    torch.save({f"module.encoder_q.{name}": t for name, t in state.items()}, "moco.pth.tar")
    torch.save({f"my.net.{name}": tensor for name, tensor in state.items()}, "mine.pth")
    monkeypatch.setattr(download, "_fetch", lambda address: tmp_path / "moco.pth.tar")
    words = ["moco=moco.pth.tar", "sup=torchvision:resnet18", "web=https://host/moco.pth.tar"]
    arms = read_arms(words, random=False)
    assert [arm.name for arm in arms] == ["sup", "moco", "web"]
    assert {arm.architecture for arm in arms} == {"resnet18"}
    assert arms[0].weights == arms[1].weights and arms[0].input["format"] == "RGB"
    assert "facebookresearch/moco" in capsys.readouterr().out
    with pytest.raises(InputError, match="convert-weights mine.pth weights/mine.pkl --from"):
        read_arms(["sup=mine.pth"])
