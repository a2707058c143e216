"""Whole runs: two processes under torchrun, a batch in parts, torch.compile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moco_det.foundation.errors import InputError
from pretrain import train
from pretrain.build import bn_splits_per_process
from pretrain.checkpoints import begun_by
from pretrain.config import load_config
from pretrain.data import list_images
from pretrain.data.shard_files import write_shards
from pretrain.encoders import ARCHITECTURES, Encoder
from tests.pretrain.small_trunk import SmallTrunk

REPO = Path(__file__).resolve().parents[2]
QUICK = REPO / "configs" / "pretrain" / "quick" / "moco_v2_r18.yaml"
# A learning rate at which rounding does not grow from step to step.
SLOW = ["SOLVER.LR", "0.001", "LOG_EVERY", "1"]


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def torchrun(pairs: list[str], *, resume: bool = False) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    env["OMP_NUM_THREADS"] = "1"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    tool = [str(REPO / "tools" / "pretrain.py"), "--config-file", str(QUICK)]
    return subprocess.run(
        [*launch, *tool, *(["--resume"] if resume else []), *pairs],
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
    )


@pytest.mark.slow
def test_two_processes_under_torchrun_run_as_one_does_and_go_on(
    tiny: list[str], tmp_path: Path
) -> None:
    one = train.train(load_config(QUICK, [*tiny, *SLOW])).parent
    pairs = [*tiny, *SLOW, "OUTPUT_DIR", str(tmp_path / "two"), "CHECKPOINT_EVERY", "2"]
    done = torchrun(pairs)
    assert done.returncode == 0, done.stderr
    assert "on cpu, 2 processes" in done.stderr
    assert "shuffling BN: on over 2 groups (2 x 1, processes x sub-batches)" in done.stderr
    assert done.stdout.split() == [str(tmp_path / "two" / "checkpoint.pth")]
    # At 32 px a ResNet ends in one pixel, where batch norm over four images magnifies rounding;
    # tests/pretrain/test_distributed.py compares closely, with a trunk that does not.
    two = losses(tmp_path / "two")
    assert two[:2] == pytest.approx(losses(one)[:2], rel=1e-4)
    assert two == pytest.approx(losses(one), rel=0.1) and len(two) == 4
    # Stopped after the second step and continued, both processes go on alike.
    expected = (tmp_path / "two" / "checkpoint.pth").read_bytes()
    whole = losses(tmp_path / "two")
    (tmp_path / "two" / "checkpoint.pth").unlink()
    done = torchrun(pairs, resume=True)
    assert "at iteration 2 of 4" in done.stderr, done.stderr
    assert losses(tmp_path / "two") == whole
    assert (tmp_path / "two" / "checkpoint.pth").read_bytes() == expected


@pytest.mark.slow
def test_one_process_goes_on_with_the_shards_and_the_groups_of_two(
    tiny: list[str], tmp_path: Path, class_folders: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("cat", "dog"):
        listed = list_images(str(class_folders / name))
        write_shards(listed, tmp_path / "shards" / name, name="s", shard_mb=1, seed=0)
    shards = ["DATA.PATH", str(tmp_path / "shards" / "*" / "s-*.tar"), "DATA.IMAGES", "24"]
    shards += ["DATA.SHUFFLE_BUFFER", "6", "ENCODER.BN_SPLITS", "0"]
    pairs = [*tiny, *SLOW, *shards, "CHECKPOINT_EVERY", "2"]
    two, one = tmp_path / "two", tmp_path / "one"
    done = torchrun([*pairs, "OUTPUT_DIR", str(two)])
    assert done.returncode == 0, done.stderr
    assert shutil.copytree(two, one) and losses(one)[3:]
    (one / "checkpoint.pth").unlink()
    caplog.set_level("INFO")
    final = train.train(load_config(QUICK, [*pairs, "OUTPUT_DIR", str(one)]), resume=True)
    assert "shuffling BN: on over 2 groups (1 x 2" in caplog.text
    assert losses(one)[:2] == losses(two)[:2]
    assert losses(one)[2] == pytest.approx(losses(two)[2], rel=1e-4)
    assert losses(one) == pytest.approx(losses(two), rel=0.1)  # see above
    assert begun_by(torch.load(final, weights_only=True)) == 2


def test_a_batch_in_parts_is_the_whole_batch(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "resnet18_w0.25x", SmallTrunk)
    found = []
    for parts in (1, 2):
        output = ["OUTPUT_DIR", str(tmp_path / str(parts)), "SOLVER.ACCUMULATE", str(parts)]
        found.append(losses(train.train(load_config(QUICK, [*tiny, *SLOW, *output])).parent))
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_parts_that_would_change_the_groups_of_batch_norm_are_refused(tiny: list[str]) -> None:
    pairs = ["SOLVER.BATCH", "10", "ENCODER.BN_SPLITS", "4", "SOLVER.ACCUMULATE", "2"]
    with pytest.raises(InputError, match="10 images of a process do not divide into its 4"):
        train.train(load_config(QUICK, [*tiny, *pairs]))


def test_a_batch_that_the_processes_cannot_share_is_refused(tiny: list[str]) -> None:
    with pytest.raises(InputError, match="SOLVER.BATCH 8 cannot be shared equally by 3"):
        bn_splits_per_process(load_config(QUICK, tiny), 3)


@pytest.mark.parametrize(
    "changed",
    [
        {"RANK": ""},
        {"RANK": "2"},
        {"RANK": "one"},
        {"WORLD_SIZE": "0"},
        {"WORLD_SIZE": "two"},
        {"MASTER_ADDR": ""},
        {"MASTER_PORT": "port"},
        {"LOCAL_RANK": "-1"},
    ],
)
def test_processes_without_torchruns_variables_are_refused(
    changed: dict[str, str], tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in (place | changed).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="start several processes by torchrun"):
        train.train(load_config(QUICK, tiny))


def test_compile_reaches_every_trunk_and_its_failure_is_one_line(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    train.train(load_config(QUICK, [*tiny, "COMPILE", "True"]))
    assert len(compiled) == 2  # of the query's and the key's encoder

    def broken(self: Encoder, *args: Any, **named: Any) -> None:
        raise torch._dynamo.exc.Unsupported("no compiler\nmore lines")

    monkeypatch.setattr(Encoder, "forward", broken)
    output = ["OUTPUT_DIR", str(tmp_path / "broken")]
    with pytest.raises(InputError, match=r"torch\.compile failed \(no compiler\): set COMPILE"):
        train.train(load_config(QUICK, [*tiny, *output, "COMPILE", "True"]))
    assert not (tmp_path / "broken").exists()
