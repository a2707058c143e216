"""Configs by name, from wherever the package is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from moco_det import zoo
from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import load_yaml

REPO = Path(__file__).resolve().parents[2]
CONFIGS = REPO / "configs"


def detection_names() -> list[str]:
    return [name for name in zoo.names() if "/" not in name]


def test_every_name_leads_to_a_file_that_is_a_config() -> None:
    names = zoo.names()
    assert len(names) == len(set(names)) and names == sorted(names)
    assert len(detection_names()) == 109
    for name in detection_names():
        assert load_yaml(zoo.get_config_file(name))["OUTPUT_DIR"] == f"runs/{name}"


def test_every_config_of_quick_and_pretrain_has_a_name_too() -> None:
    for kind, pattern in {"quick": "quick/*.yaml", "pretrain": "pretrain/**/*.yaml"}.items():
        files = {file.relative_to(CONFIGS).as_posix() for file in CONFIGS.glob(pattern)}
        assert files == {f"{name}.yaml" for name in zoo.names() if name.split("/")[0] == kind}
        assert files


@pytest.mark.parametrize("name", zoo.names())
def test_a_config_is_found_by_its_name_and_without_its_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    patterns = zoo.PRETRAINING if name.startswith("pretrain/") else zoo.DETECTION
    for spelled in (name, name.rpartition("/")[2]):
        assert zoo.find_config(spelled, patterns=patterns) == str(CONFIGS / f"{name}.yaml")


def test_a_file_that_exists_wins_over_the_config_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("R18_FPN").touch()
    assert zoo.find_config("R18_FPN") == "R18_FPN"
    with pytest.raises(InputError, match="R18.FPN does not exist.*did you mean R18_FPN"):
        zoo.find_config("R18.FPN")


def test_a_pretraining_config_is_no_detector_and_a_detector_no_pretraining_config() -> None:
    with pytest.raises(InputError, match="no detection config has this name"):
        zoo.find_config("pretrain/quick/moco_v2_r18")
    with pytest.raises(InputError, match="no pre-training config has this name"):
        zoo.find_config("quick/R18_FPN", patterns=zoo.PRETRAINING)
    with pytest.raises(InputError, match=r"zoo\.names\(\)\)\" lists them"):
        zoo.find_config("nothing/like/it")


def test_suites_are_found_by_name_too_and_are_no_configs(tmp_path: Path) -> None:
    assert zoo.find_suite("quick") == CONFIGS / "suites" / "quick.yaml"
    (tmp_path / "mine.yaml").touch()
    assert zoo.find_suite(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
    with pytest.raises(InputError, match=r"--suite vok: .* coco, quick, voc: did you mean"):
        zoo.find_suite("vok")
    assert not any("suites" in name for name in zoo.names())


def test_a_name_may_end_in_yaml() -> None:
    plain = zoo.get_config_file("coco_R50_FPN_2x_moco")
    assert zoo.get_config_file("coco_R50_FPN_2x_moco.yaml") == plain
    assert Path(plain).is_file()


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("coco_R50_FPN_2x_mocov3", "coco_R50_FPN_2x_mocov2"),
        ("voc_R_50_C4_24k_moco", "voc_R50_C4_24k_moco"),
        ("", "among the 157"),
        ("../secret", "among the 157"),
        ("base/RCNN_FPN", "among the 157"),
    ],
)
def test_a_name_that_is_none_is_an_error_with_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(InputError) as caught:
        zoo.get_config_file(wrong)
    assert near in str(caught.value) and repr(wrong) in str(caught.value)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contents of a wheel, built from a copy so that the checkout stays as it is."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 71:
        pytest.importorskip("wheel")  # 70.1 is the first that builds wheels by itself
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("moco_det", "pretrain", "tools", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPO / name, folder / "source" / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-index", "--no-build-isolation", "-w", str(folder / "dist")]
    done = subprocess.run(
        [*pip, *options, str(folder / "source")], capture_output=True, text=True, check=False
    )
    if "No module named pip" in done.stderr:
        pytest.skip("no pip in this environment")
    assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_every_config_and_every_data_file(installed: Path) -> None:
    for source, target in {"configs": "moco_det_configs", "moco_det": "moco_det"}.items():
        here, there = (
            {file.relative_to(root) for file in root.rglob("*.yaml")}
            for root in (REPO / source, installed / target)
        )
        assert here == there and len(here) >= (140 if source == "configs" else 1)


def test_the_configs_of_a_wheel_are_found_by_name_from_any_folder(
    installed: Path, tmp_path: Path
) -> None:
    program = (
        "from moco_det import zoo\n"
        "from moco_det.foundation.strict_yaml import load_yaml\n"
        "print(len(zoo.names()), zoo.get_config_file('coco_R50_FPN_2x_moco'))\n"
        "print(load_yaml(zoo.get_config_file('voc_R50_C4_24k_moco'))['SOLVER']['MAX_ITER'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )
    file = installed / "moco_det_configs" / "coco_R50_FPN_2x_moco.yaml"
    assert done.stdout.splitlines() == [f"{len(zoo.names())} {file}", "24000"]


def test_the_commands_of_a_wheel_take_configs_by_name(installed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "moco_det_tools.cli", "check-matched", "--without-weights"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def matched(*names: str) -> subprocess.CompletedProcess[str]:
        words = [*command, "--engine", "standalone", *names]
        return subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)

    done = matched("voc07_R50_C4_9k_moco", "voc07_R50_C4_9k_random")
    assert done.returncode == 0 and done.stdout.startswith("matched: moco, random")
    done = matched("voc07_R50_C4_9k_moco", "R18_FPM")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "R18_FPM does not exist" in done.stderr and "did you mean R18_FPN" in done.stderr
