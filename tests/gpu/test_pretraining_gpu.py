"""Pre-training on a GPU: every method, captured and not, stopped and resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain import augment, capture, data, loop, train
from pretrain.config import load_config
from pretrain.data import resident
from pretrain.methods.base import Batch
from tests.pretrain.test_resume import EVERY, QUICK, stop_at

pytestmark = pytest.mark.gpu

STEPS = 7
# Methods whose step draws nothing but views, so that every device computes the same.
WITHOUT_DRAWS = ["moco", "end_to_end", "softmax", "parametric", "supervised"]


def run(
    tiny: list[str], device: str, output: Path, *pairs: str, resume: bool = False
) -> list[dict[str, Any]]:
    """The records of a run of seven steps, one per step."""
    # a rate at which rounding does not grow from step to step
    tiny = [*tiny, "SOLVER.LR", "0.001"]
    shape = ["DEVICE", device, "SOLVER.MAX_ITER", str(STEPS), "LOG_EVERY", "1"]
    words = [*tiny, *shape, "CHECKPOINT_EVERY", "2", "OUTPUT_DIR", str(output), *pairs]
    path = train.train(load_config(QUICK, words), resume=resume)
    rows = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def losses(rows: list[dict[str, Any]]) -> list[float]:
    return [row["loss"] for row in rows]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", EVERY)
def test_every_method_trains(
    method: str, precision: str, device: str, tiny: list[str], tmp_path: Path
) -> None:
    rows = run(tiny, device, tmp_path / "run", "PRECISION", precision, *EVERY[method])
    assert [row["iteration"] for row in rows] == list(range(1, STEPS + 1))
    assert all(math.isfinite(row["loss"]) and row["feature_std"] > 0 for row in rows)
    content = torch.load(tmp_path / "run" / "checkpoint.pth", weights_only=True)
    assert content["encoder"]["conv1.weight"].device.type == "cpu"
    assert content["state"]["bfloat16"] is (precision == "bfloat16")


@pytest.mark.parametrize("method", WITHOUT_DRAWS)
def test_the_first_loss_is_that_of_a_cpu(
    method: str, device: str, tiny: list[str], tmp_path: Path
) -> None:
    pairs = [*EVERY[method], "MOCO.SHUFFLE", "False", "END_TO_END.SHUFFLE", "False"]
    pairs += ["SOLVER.MAX_ITER", "1"]
    one, two = (
        losses(run(tiny, where, tmp_path / name, *pairs))
        for name, where in (("one", device), ("two", "cpu"))
    )
    assert one == pytest.approx(two, abs=0.05)  # convolutions have TF32's 10 bits


@pytest.mark.parametrize("method", EVERY)
def test_a_captured_run_has_the_losses_of_a_plain_one(
    method: str, device: str, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cpu":
        monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    replays: list[None] = []
    record = capture.record

    def counted(function: Any) -> Any:
        replay, results = record(function)
        return lambda: (replays.append(None), replay())[1], results

    monkeypatch.setattr(capture, "record", counted)
    plain = losses(run(tiny, device, tmp_path / "plain", *EVERY[method]))
    pairs = [*EVERY[method], "COMPILE", "True"]
    captured = losses(run(tiny, device, tmp_path / "captured", *pairs))
    assert captured == pytest.approx(plain, rel=0.02, abs=0.02)
    assert device == "cpu" or 0 < len(replays) <= STEPS - capture.FIRST


ON_DEVICE = ["DATA.ON_DEVICE", "True", "DATA.SHORTER_SIDE", "40"]
# from files every method, from images on the device one of each kind of dictionary
RESUMED = [(method, []) for method in EVERY]
RESUMED += [(method, [*ON_DEVICE, "DATA.WORKERS", "2"]) for method in ("moco", "nce", "supervised")]


@pytest.mark.parametrize("compiled", ["False", "True"])
@pytest.mark.parametrize(("method", "source"), RESUMED)
def test_a_stopped_run_goes_on(
    method: str,
    source: list[str],
    compiled: str,
    device: str,
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if device == "cpu":
        monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    pairs = [*EVERY[method], *source, "COMPILE", compiled]
    whole = losses(run(tiny, device, tmp_path / "whole", *pairs))
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            run(tiny, device, tmp_path / "parts", *pairs)
    parts = losses(run(tiny, device, tmp_path / "parts", *pairs, resume=True))
    assert parts == pytest.approx(whole, rel=0.02, abs=0.02)


@pytest.mark.parametrize("recipe", list(augment.RECIPES))
def test_views_made_on_the_device_are_those_made_on_a_cpu(
    recipe: str, device: str, class_folders: Path
) -> None:
    spec = data.ViewSpec(augment.recipe(recipe, min_scale=0.2), size=32, views=2, seed=0)
    args = data.DataArgs(PATH=str(class_folders), ON_DEVICE=True)
    one, two = (
        data.open_data(args, spec, batch=24, device=torch.device(where)).make_loader(
            batch=24, start=0, stop=3, workers=0, pin=device == "cuda"
        )
        for where in (device, "cpu")
    )
    for found, right in zip(one, two, strict=True):
        assert found.pixels.device.type == device
        assert torch.equal(found.indices.cpu(), right.indices)
        off = (found.pixels.cpu().int() - right.pixels.int()).abs()
        # where a hue is next to a boundary, rounding may take another branch
        assert off.float().mean() < 0.05 and (off > 1).float().mean() < 1e-3


def test_making_views_does_not_wait_for_the_device(
    device: str, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = resident.ViewsOnDevice.__call__
    watched: list[None] = []

    def watching(self: resident.ViewsOnDevice, raw: data.RawBatch) -> data.RawBatch:
        watched.append(None)
        # the first call chooses matrix products, which may wait
        if device == "cuda" and len(watched) > 1:
            torch.cuda.set_sync_debug_mode("error")
        try:
            return make(self, raw)
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(resident.ViewsOnDevice, "__call__", watching)
    run(tiny, device, tmp_path / "run", *ON_DEVICE, "AUGMENT.RECIPE", "moco_v2")
    assert len(watched) == STEPS


def test_a_goal_of_neighbours_ends_a_run_on_views_of_the_device(
    device: str, tiny: list[str], tmp_path: Path, class_folders: Path
) -> None:
    pairs = ["KNN.TRAIN", str(class_folders), "KNN.EVERY", "1", "KNN.SIZE", "32"]
    rows = run(tiny, device, tmp_path / "run", *ON_DEVICE, *pairs, "KNN.GOAL", "1")
    assert rows[-1]["iteration"] == 3  # an epoch of 24 images


def test_neighbours_are_measured(
    device: str, tiny: list[str], tmp_path: Path, class_folders: Path
) -> None:
    folder = str(class_folders)
    pairs = ["KNN.TRAIN", folder, "KNN.EVERY", "1", "KNN.SIZE", "32"]
    run(tiny, device, tmp_path / "run", *pairs)
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    found = [row["knn_accuracy"] for row in map(json.loads, text.splitlines()) if "loss" not in row]
    assert len(found) > 1 and all(0 <= accuracy <= 100 for accuracy in found)


@pytest.mark.parametrize("method", EVERY)
def test_a_step_does_not_wait_for_the_device(
    method: str, device: str, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = loop.Loop._compute
    watched: list[None] = []

    def watching(self: loop.Loop, batch: Batch) -> dict[str, Tensor]:
        if device == "cpu" or not self.method.settled or self.iteration == 0:
            return compute(self, batch)
        watched.append(None)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return compute(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop.Loop, "_compute", watching)
    run(tiny, device, tmp_path / "run", *EVERY[method])
    assert watched or device == "cpu"
