"""tools/check_matched.py: the proof for yaml files, with the weights they name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from moco_det.foundation.errors import InputError
from moco_det.runs.matched_files import labelled, match_files
from moco_det.weights.formats import BGR_MSRA, RGB_IMAGENET
from moco_det_tools.check_matched import main
from moco_det_tools.entry import run
from tests.standalone.conftest import backbone_arrays, write_backbone

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DATA = "DATASETS: {TRAIN: [coco_2017_train], TEST: [coco_2017_val]}\n"
Arm = Callable[..., Path]


@pytest.fixture
def arm(tmp_path: Path) -> Arm:
    """Writes a small config and returns its path."""

    def write(name: str, *lines: str, weights: str = "") -> Path:
        base = f"_BASE_: {CONFIGS / 'quick' / 'R18_FPN.yaml'}\n"
        text = base + DATA + "\n".join([f"MODEL: {{WEIGHTS: '{weights}'}}", *lines])
        (tmp_path / f"{name}.yaml").write_text(text)
        return tmp_path / f"{name}.yaml"

    return write


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two backbone files: one of torchvision's input, one of MSRA's."""
    tmp_path = tmp_path_factory.mktemp("weights")
    arrays = backbone_arrays()
    write_backbone(tmp_path / "moco.pkl", arrays, input=dict(RGB_IMAGENET))
    write_backbone(tmp_path / "msra.pkl", arrays, input=dict(BGR_MSRA))
    return {name: str(tmp_path / f"{name}.pkl") for name in ("moco", "msra")}


def check(*options: object) -> int:
    argv = ["--engine", "standalone", *map(str, options)]
    return run(lambda: main(argv))


def test_arms_of_the_matrix_agree_without_their_weights(
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [CONFIGS / f"voc_R50_DC5_24k_{name}.yaml" for name in ("random", "moco", "mocov2")]
    assert check(*files, "--without-weights") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("matched: random, moco, mocov2 agree in all of ")
    assert printed[1].startswith("allowed MODEL.WEIGHTS: random=(none), moco=weights/moco_v1")


def test_an_input_that_only_unopened_weights_could_demand_is_said_to_be_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [CONFIGS / f"voc_R50_DC5_24k_{name}.yaml" for name in ("random", "sup_msra")]
    assert check(*files, "--without-weights") == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("the weights were not opened")


def test_differing_keys_are_printed_and_the_exit_code_is_1(
    arm: Arm, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [arm("a"), arm("b", "SOLVER: {BASE_LR: 0.5}", "TEST: {EVAL_PERIOD: 7}")]
    assert check(*files) == 1
    printed = capsys.readouterr().out
    assert "NOT matched: a, b" in printed
    assert "forbidden SOLVER.BASE_LR: a=0.01, b=0.5" in printed
    assert "forbidden TEST.EVAL_PERIOD: a=0, b=7" in printed


def test_weights_of_another_input_may_have_it_and_no_other_arm(
    arm: Arm, weights: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    mean, std = "PIXEL_MEAN: [103.53, 116.28, 123.675]", "PIXEL_STD: [1, 1, 1]"
    keys = f"{mean}, {std}, RESNETS: {{STRIDE_IN_1X1: True}}, WEIGHTS: '{weights['msra']}'"
    msra = arm("msra", "INPUT: {FORMAT: BGR}")
    msra.write_text(msra.read_text().replace("WEIGHTS: ''", keys))
    moco = arm("moco", weights=weights["moco"])
    assert check(moco, msra) == 0
    assert "allowed INPUT.FORMAT: moco=RGB, msra=BGR" in capsys.readouterr().out
    msra.write_text(msra.read_text().replace(weights["msra"], weights["moco"]))
    assert check(moco, msra) == 1
    assert "msra's weights demand RGB" in capsys.readouterr().out


def test_a_config_that_contradicts_its_weights_is_refused_alone(
    arm: Arm, weights: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(arm("msra", weights=weights["msra"])) == 1
    assert "msra's weights demand BGR" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["SEED: 1", "SEED: 2"], "duplicate yaml key 'SEED'"),
        (["SOLVER: {LR: 1}"], "SOLVER.LR"),
        (["DATASETS: {TRAIN: []}"], "duplicate yaml key 'DATASETS'"),
    ],
)
def test_a_file_that_the_engine_refuses_is_one_line_and_code_2(
    lines: list[str], told: str, arm: Arm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(arm("a"), arm("b", *lines)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and told in line and "b.yaml" in line


@pytest.mark.parametrize("key", ["BACKBONE: {FREEZE_AT: 2}", "RESNETS: {NORM: FrozenBN}"])
def test_what_is_frozen_over_random_weights_is_refused(
    key: str, arm: Arm, weights: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = arm("frozen")
    text = frozen.read_text()
    frozen.write_text(text.replace("{WEIGHTS: ''}", f"{{WEIGHTS: '', {key}}}"))
    assert check(frozen) == 2
    assert "MODEL." in capsys.readouterr().err
    frozen.write_text(text.replace("{WEIGHTS: ''}", f"{{WEIGHTS: '{weights['moco']}', {key}}}"))
    assert check(frozen) == 0


def test_weights_that_are_not_there_name_the_converter_and_the_way_around(
    arm: Arm, capsys: pytest.CaptureFixture[str]
) -> None:
    file = arm("a", weights="gone.pkl")
    assert check(file) == 2
    error = capsys.readouterr().err
    assert "convert-weights CHECKPOINT gone.pkl" in error and "--without-weights" in error
    assert check(file, "--without-weights") == 0


def test_keys_over_every_file_are_those_of_train_net(arm: Arm) -> None:
    files = [arm("a"), arm("b", "SEED: 4", "SOLVER: {BASE_LR: 0.5}")]
    assert check(*files, "--set", "SOLVER.BASE_LR", "0.1") == 0
    assert check(*files, "--set", "SOLVER.BASE_LR") == 2


def test_files_of_one_name_go_by_their_paths(tmp_path: Path) -> None:
    assert list(labelled(["x/a_moco.yaml", "x/a_random.yaml"])) == ["moco", "random"]
    assert list(labelled(["x/moco.yaml", "x/moco_v2.yaml"])) == ["moco", "moco_v2"]
    assert list(labelled(["x/a.yaml", "y/a.yaml"])) == ["x/a", "y/a"]
    assert list(labelled(["x/coco_moco.yaml"])) == ["coco_moco"]
    assert list(labelled(["x/a.yaml", "x/a.yaml"])) == ["a"]


@pytest.mark.detectron2
def test_on_detectron2_its_own_defaults_are_compared_as_well() -> None:
    pytest.importorskip("detectron2")
    files = [CONFIGS / f"coco_keypoint_R50_FPN_2x_{name}.yaml" for name in ("random", "moco")]
    matched = match_files(files, engine="detectron2", read_weights=False)
    ours = match_files(
        [CONFIGS / f"coco_R50_FPN_2x_{name}.yaml" for name in ("random", "moco")],
        engine="standalone",
        read_weights=False,
    )
    assert matched.ok and ours.ok and matched.keys_compared > ours.keys_compared + 50
    with pytest.raises(InputError, match="--engine detectron2"):
        match_files(files, engine="standalone", read_weights=False)


def test_one_config_beside_itself_is_no_proof(arm: Arm, capsys: pytest.CaptureFixture[str]) -> None:
    one = arm("a_random")
    assert check(one, one) == 2
    assert "a_random.yaml is named twice" in capsys.readouterr().err
