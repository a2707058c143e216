"""Stopped, killed and resumed on detectron2: as if never stopped, and nothing written in part."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moco_det.results import read_rows

pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

from detectron2.engine import SimpleTrainer  # noqa: E402

from moco_det.plugin.engine import Detectron2Run  # noqa: E402
from moco_det.plugin.evaluator import Evaluator  # noqa: E402

Tool = Callable[..., int]
Stop = Callable[..., None]
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "quick"
# evaluated after steps 3 and 6, saved after 2, 4 and 6, with an order of images of its own drawing
KEYS = {"SOLVER__MAX_ITER": "6", "TEST__EVAL_PERIOD": "3", "SEED": "-1"}
CLOCK = ("time", "data_time", "rank_data_time", "eta_seconds")


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the clock says."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


def trained(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "model_final.pth", weights_only=True)
    return found["model"]


def litter(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, train_net: Tool) -> Path:
    """A run that dies in its fourth step, after the checkpoint of the second."""
    output = tmp_path_factory.mktemp("begun") / "run"
    with pytest.MonkeyPatch.context() as patch:
        dies_in_step(patch, 3)
        with pytest.raises(RuntimeError, match="killed"):
            train_net("--engine", "detectron2", OUTPUT_DIR=str(output), **KEYS)
    assert (output / "last_checkpoint").read_text() == "model_0000001.pth"
    return output


@pytest.fixture(scope="module")
def whole(begun: Path, tmp_path_factory: pytest.TempPathFactory, train_net: Tool) -> Path:
    """The same run, of the seed that was drawn, never stopped."""
    output = tmp_path_factory.mktemp("whole") / "run"
    content = torch.load(begun / "model_0000001.pth", weights_only=True)
    seed = str(content["trainer"]["hooks"]["RunState"]["seed"])
    words = {**KEYS, "SEED": seed}
    assert train_net("--engine", "detectron2", OUTPUT_DIR=str(output), **words) == 0
    return output


@pytest.fixture
def copy(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run"))


def dies_in_step(patch: pytest.MonkeyPatch, number: int) -> None:
    real = SimpleTrainer.run_step

    def step(self: SimpleTrainer) -> None:
        real(self)
        if self.iter == number:
            raise RuntimeError("killed")

    patch.setattr(SimpleTrainer, "run_step", step)


def signalled_in_step(patch: pytest.MonkeyPatch, number: int) -> None:
    real = SimpleTrainer.run_step

    def step(self: SimpleTrainer) -> None:
        if self.iter == number:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self)

    patch.setattr(SimpleTrainer, "run_step", step)


def signalled_in_evaluation(patch: pytest.MonkeyPatch, number: int) -> list[None]:
    """The list has an element per image that was scored."""
    real, images = Evaluator.process, list[None]()

    def process(self: Evaluator, inputs: Any, outputs: Any) -> None:
        images.append(None)
        if len(images) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, inputs, outputs)

    patch.setattr(Evaluator, "process", process)
    return images


def assert_equal(found: Path, whole: Path) -> None:
    assert lines_of(found) == lines_of(whole)
    one, two = trained(found), trained(whole)
    assert [name for name in two if not torch.equal(one[name], two[name])] == []
    predictions = [(folder / "predictions.json").read_bytes() for folder in (found, whole)]
    assert predictions[0] == predictions[1]
    (row,), (other,) = ([r.data for r in read_rows([folder]).rows] for folder in (found, whole))
    assert row["seed"] == other["seed"] and row["metrics"] == other["metrics"]
    assert not any("resumed" in line for line in row["warnings"])
    assert litter(found) == []


def test_a_killed_run_ends_as_one_that_never_was(
    copy: Path, whole: Path, train_net: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.rand(17)  # another process starts with another state
    half_written = copy / ".model_0000003.pth.1234.partial"
    half_written.write_bytes(b"of a kill in the middle of a write")
    options = ("--engine", "detectron2", "--resume")
    workers = {"DATALOADER__NUM_WORKERS": "2"}  # enter no number
    assert train_net(*options, OUTPUT_DIR=str(copy), **KEYS, **workers) == 0
    assert_equal(copy, whole)


@pytest.mark.parametrize(
    ("stop", "number", "kept"),
    [
        (signalled_in_step, 2, "model_0000002.pth"),  # whose evaluation is given up
        (signalled_in_step, 3, "model_0000003.pth"),  # before its first seconds per step
        (signalled_in_step, 4, "model_0000004.pth"),
        (signalled_in_evaluation, 2, "model_0000002.pth"),
        (signalled_in_evaluation, 6, "model_final.pth"),  # the second one's
        (signalled_in_step, 5, "model_final.pth"),
    ],
)
def test_a_stop_saves_and_the_run_ends_as_if_never_stopped(
    stop: Stop,
    number: int,
    kept: str,
    copy: Path,
    whole: Path,
    train_net: Tool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = ("--engine", "detectron2", "--resume")
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    stop(monkeypatch, number)
    assert train_net(*options, OUTPUT_DIR=str(copy), **KEYS) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert {name: signal.getsignal(name) for name in before} == before
    assert (copy / "last_checkpoint").read_text() == kept and litter(copy) == []
    assert f"--resume goes on from {copy / kept}" in (copy / "log.txt").read_text()
    assert not (copy / "results.jsonl").exists()
    assert train_net(*options, OUTPUT_DIR=str(copy), **KEYS) == 0
    assert_equal(copy, whole)


def test_adamw_and_drop_path_of_a_timm_network_end_as_if_never_stopped(
    tmp_path: Path, train_net: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm")
    keys = {"MODEL__TIMM__NAME": "test_convnext", "MODEL__MASK_ON": "False"}
    options = {"config": CONFIGS / "own_convnext_FPN.yaml", **keys}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train_net("--engine", "detectron2", OUTPUT_DIR=str(whole), **options) == 0
    with pytest.raises(RuntimeError, match="killed"):
        dies_in_step(monkeypatch, 2)
        train_net("--engine", "detectron2", OUTPUT_DIR=str(killed), **options)
    monkeypatch.undo()
    torch.rand(17)
    assert train_net("--engine", "detectron2", "--resume", OUTPUT_DIR=str(killed), **options) == 0
    assert_equal(killed, whole)
    content = torch.load(killed / "model_final.pth", weights_only=True)
    assert set(content["trainer"]["_trainer"]["optimizer"]["state"][0]) == {
        *("step", "exp_avg", "exp_avg_sq")
    }


def test_a_run_killed_before_its_last_checkpoint_has_it_after_the_resume(
    whole: Path, tmp_path: Path, train_net: Tool
) -> None:
    killed = Path(shutil.copytree(whole, tmp_path / "run"))
    (killed / "model_final.pth").unlink()
    (killed / "results.jsonl").unlink()
    (killed / "last_checkpoint").write_text("model_0000005.pth")
    seed = {"SEED": str(read_rows([whole]).rows[0].seed)}
    options = ("--engine", "detectron2", "--resume")
    assert train_net(*options, OUTPUT_DIR=str(killed), **{**KEYS, **seed}) == 0
    assert (killed / "last_checkpoint").read_text() == "model_final.pth"
    assert_equal(killed, whole)


def test_an_evaluation_is_given_up_after_the_batch_in_hand(
    copy: Path, train_net: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = signalled_in_evaluation(monkeypatch, 2)
    train_net("--engine", "detectron2", "--resume", OUTPUT_DIR=str(copy), **KEYS)
    assert len(images) == 2


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(
    copy: Path,
    train_net: Tool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    assert train_net("--engine", "detectron2", "--resume", OUTPUT_DIR=str(copy), **KEYS) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith(f"error: cannot write {copy}/model_0000003.pth: No")
    assert "Traceback" not in said.out + said.err
    assert (copy / "last_checkpoint").read_text() == "model_0000001.pth" and litter(copy) == []


def test_a_finished_run_is_not_trained_scored_or_written_again(
    whole: Path, tmp_path: Path, train_net: Tool, caplog: pytest.LogCaptureFixture
) -> None:
    output = Path(shutil.copytree(whole, tmp_path / "run"))
    (output / "model_final.pth").write_bytes(b"is not read")
    seed = str(read_rows([output]).rows[0].data["seed"])
    with caplog.at_level(logging.INFO):
        options = ("--engine", "detectron2", "--resume")
        assert train_net(*options, OUTPUT_DIR=str(output), **{**KEYS, "SEED": seed}) == 0
    assert f"{output} is finished: its row is line 1 of" in caplog.text
    assert len(read_rows([output]).rows) == 1


def test_a_kill_before_the_first_step_leaves_the_config_that_was_given(
    copy: Path, train_net: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the one that runs, without mixed precision on the CPU and with the seed that is drawn."""
    begin = Detectron2Run.begin

    def dies(self: Detectron2Run) -> None:
        begin(self)
        raise RuntimeError("killed")

    keys = {**KEYS, "SOLVER__AMP__ENABLED": "True"}
    shutil.rmtree(copy)
    with pytest.raises(RuntimeError, match="killed"):
        dies_in_step(monkeypatch, 3)
        train_net("--engine", "detectron2", OUTPUT_DIR=str(copy), **keys)
    before = (copy / "config.yaml").read_bytes()
    options = ("--engine", "detectron2", "--resume")
    monkeypatch.setattr(Detectron2Run, "begin", dies)
    with pytest.raises(RuntimeError, match="killed"):
        train_net(*options, OUTPUT_DIR=str(copy), **keys)
    assert (copy / "config.yaml").read_bytes() == before
    monkeypatch.undo()
    assert train_net(*options, OUTPUT_DIR=str(copy), **keys) == 0


def test_wall_seconds_are_those_of_all_parts(copy: Path, train_net: Tool) -> None:
    content = torch.load(copy / "model_0000001.pth", weights_only=True)
    state = content["trainer"]["hooks"]["RunState"]
    assert 0 < state["seconds"] < 1000
    state["seconds"] = 5000.0
    torch.save(content, copy / "model_0000001.pth")
    keys = {**KEYS, "SOLVER__MAX_ITER": "3"}
    assert train_net("--engine", "detectron2", "--resume", OUTPUT_DIR=str(copy), **keys) == 0
    (row,) = read_rows([copy]).rows
    assert 5000 < row.data["wall_seconds"] < 6000
    saved = torch.load(copy / "model_final.pth", weights_only=True)
    assert saved["trainer"]["hooks"]["RunState"]["seconds"] > 5000


RUN_STATE = ("trainer", "hooks", "RunState")
MOMENTUM = ("trainer", "_trainer", "optimizer", "state", 0, "momentum_buffer")


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        (("trainer",), None),
        (("trainer", "iteration"), -5),
        (("trainer", "iteration"), 10**30),
        (("trainer", "_trainer", "optimizer"), [1]),
        (("trainer", "_trainer", "optimizer", "param_groups"), []),
        (MOMENTUM, torch.zeros(3)),
        (MOMENTUM, "x"),
        ((*RUN_STATE, "random"), [1]),
        ((*RUN_STATE, "random", 0, "torch"), torch.zeros(3)),
        (("model", "proposal_generator.rpn_head.conv.bias"), [1]),
    ],
)
def test_an_entry_of_a_wrong_kind_is_one_line(
    entry: tuple[Any, ...],
    value: Any,
    copy: Path,
    train_net: Tool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = node = torch.load(copy / "model_0000001.pth", weights_only=True)
    for key in entry[:-1]:
        node = node[key]
    node[entry[-1]] = value
    torch.save(content, copy / "model_0000001.pth")
    assert train_net("--engine", "detectron2", "--resume", OUTPUT_DIR=str(copy), **KEYS) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert re.match(r"error: .*model_0000001\.pth", said.err.splitlines()[-1])


def test_rates_are_those_of_the_config_wherever_a_checkpoint_comes_from(
    copy: Path, whole: Path, train_net: Tool
) -> None:
    """Also where its scheduler and its groups say something else."""
    content = torch.load(copy / "model_0000001.pth", weights_only=True)
    content["trainer"]["hooks"]["LRScheduler"] |= {"last_epoch": 77, "get_lr": 5}
    for group in content["trainer"]["_trainer"]["optimizer"]["param_groups"]:
        group |= {"lr": "x", "momentum": None}
    torch.save(content, copy / "model_0000001.pth")
    assert train_net("--engine", "detectron2", "--resume", OUTPUT_DIR=str(copy), **KEYS) == 0
    assert_equal(copy, whole)


def test_a_checkpoint_of_detectron2s_own_is_resumed_with_a_warning(
    copy: Path, train_net: Tool
) -> None:
    content = torch.load(copy / "model_0000001.pth", weights_only=True)
    del content["trainer"]["hooks"]["RunState"]
    torch.save(content, copy / "model_0000001.pth")
    keys = {**KEYS, "SOLVER__MAX_ITER": "3"}
    assert train_net("--engine", "detectron2", "--resume", OUTPUT_DIR=str(copy), **keys) == 0
    (row,) = read_rows([copy]).rows
    assert any("0000001.pth, which has no random state" in line for line in row.data["warnings"])
