"""A checkpoint of the right format and the wrong content ends in one line, not in a traceback."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moco_det.foundation.errors import InputError
from pretrain.config import load_config
from pretrain.train import train
from tests.pretrain.test_resume import QUICK

Content = dict[str, Any]


def without(*path: Any) -> Callable[[Content], Any]:
    def change(content: Content) -> None:
        for name in path[:-1]:
            content = content[name]
        del content[path[-1]]

    return change


def given(value: Any, *path: Any) -> Callable[[Content], Any]:
    def change(content: Content) -> None:
        for name in path[:-1]:
            content = content[name]
        content[path[-1]] = value

    return change


STATE = ("method", "optimizer", "iteration", "data", "corrupt", "watch", "rng", "sums")
NAN = torch.full((64,), float("nan"))
CHANGES = {
    "no encoder": without("encoder"),
    **{f"no state.{name}": without("state", name) for name in STATE},
    "config is text": given("x", "config"),
    **{f"state.{name} is a list": given([1], "state", name) for name in ("data", "rng")},
    "state.watch is {}": given({}, "state", "watch"),
    "a tensor is missing": without("encoder", "bn1.weight"),
    "a tensor is NaN": given(NAN, "encoder", "bn1.weight"),
    "a tensor is a number": given(3, "encoder", "bn1.weight"),
    "another shape": given(torch.ones(3), "encoder", "bn1.weight"),
    "a momentum of another shape": given(
        torch.ones(3), "state", "optimizer", "state", 0, "momentum_buffer"
    ),
    "no momentum of one tensor": without("state", "optimizer", "state", 3),
    "a tensor of a billion numbers in four bytes": given(
        torch.zeros(1).expand(10**9), "encoder", "bn1.weight"
    ),
    "a momentum of text": given("x", "state", "optimizer", "state", 0, "momentum_buffer"),
    "other groups": given([], "state", "optimizer", "param_groups"),
    "iteration -1": given(-1, "state", "iteration"),
    "iteration 1e30": given(10**30, "state", "iteration"),
    "iteration 1.5": given(1.5, "state", "iteration"),
    "random numbers too short": given(torch.zeros(3, dtype=torch.uint8), "state", "rng", "torch"),
    "random numbers of floats": given(torch.zeros(5056), "state", "rng", "torch"),
    "sums of text": given({"loss": "x"}, "state", "sums"),
    "config of numbers": given({1: 2}, "config"),
    "config with a tensor": given(torch.zeros(2, 2), "config", "MOCO", "T"),
}


@pytest.fixture(scope="module")
def begun(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that has its first checkpoint and not its last, and its keys."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    pairs = {
        "DATA.PATH": class_folders,
        "OUTPUT_DIR": folder,
        "SOLVER.BATCH": 8,
        "SOLVER.MAX_ITER": 2,
        "ENCODER.BN_SPLITS": 2,
        "AUGMENT.SIZE": 32,
        "MOCO.K": 24,
        "ENCODER.DIM": 16,
        "DATA.WORKERS": 0,
        "CHECKPOINT_EVERY": 1,
        "DEVICE": "cpu",
        "PRECISION": "float32",
    }
    keys = [str(part) for pair in pairs.items() for part in pair]
    train(load_config(QUICK, keys))
    (folder / "checkpoint.pth").unlink()
    return folder, keys


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_checkpoint_with_an_entry_missing_or_wrong_is_one_line(
    begun: tuple[Path, list[str]], change: Callable[[Content], Any], tmp_path: Path
) -> None:
    folder, keys = begun
    content = copy.deepcopy(torch.load(folder / "checkpoint_00000001.pth", weights_only=True))
    change(content)
    run = tmp_path / "run"
    run.mkdir()
    torch.save(content, run / "checkpoint_00000001.pth")
    before = (run / "checkpoint_00000001.pth").read_bytes()
    with pytest.raises(InputError, match="checkpoint_00000001|whole|another config") as caught:
        train(load_config(QUICK, [*keys, "OUTPUT_DIR", str(run)]), resume=True)
    assert "\n" not in str(caught.value)
    assert (run / "checkpoint_00000001.pth").read_bytes() == before
    assert not (run / "checkpoint.pth").exists() and not (run / "metrics.jsonl").exists()


def test_the_checkpoint_before_a_hollow_one_is_taken(
    begun: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, keys = begun
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    content = torch.load(run / "checkpoint_00000001.pth", weights_only=True)
    del content["state"]["rng"]
    torch.save(content, run / "checkpoint_00000002.pth")
    train(load_config(QUICK, [*keys, "OUTPUT_DIR", str(run)]), resume=True)
    assert (run / "checkpoint.pth").is_file()
