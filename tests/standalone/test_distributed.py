"""Two gloo processes on the CPU do what one process would do with all the images."""

from __future__ import annotations

import json
import math
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from moco_det.data.scenes import ScenesPaths
from moco_det.foundation import collectives, launching
from moco_det.foundation.errors import InputError
from moco_det.resnet.layers import SyncBatchNorm2d
from moco_det.settings.engine import RunOptions
from tests.standalone.test_run import final_state, lines_of
from tests.standalone.tiny import on_scenes
from tests.standalone.workers import (
    batch_of,
    detector,
    exercise,
    loss_of,
    norm_layer,
    rows_of,
    samples_of,
)


def free_url() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{s.getsockname()[1]}"


@dataclass
class Two:
    """What two processes found, the folder of the run they made, and the error they ended with."""

    ranks: list[dict[str, Any]]
    detectors: list[dict[str, Any]]
    run: Path
    error: str


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, painted: ScenesPaths) -> Two:
    """Processes are started once for the whole file: that takes most of the time."""
    folder = tmp_path_factory.mktemp("ranks")
    changes = {
        "MODEL.RESNETS.NORM": "SyncBN",
        "MODEL.FPN.NORM": "SyncBN",
        "SOLVER.MAX_ITER": "2",
        "SOLVER.STEPS": "()",
    }
    cfg = on_scenes(painted, folder / "two", changes)
    with pytest.raises(InputError, match="nowhere") as caught:
        launching.launch(
            exercise,
            (folder, cfg, RunOptions("R18_FPN")),
            launching.ProcessLayout(2),
            "cpu",
        )
    found = [
        [torch.load(folder / f"{rank}{kind}.pt", weights_only=False) for rank in (0, 1)]
        for kind in ("", "_detector")
    ]
    return Two(*found, folder / "two", str(caught.value))


@pytest.mark.slow
def test_values_are_gathered_by_rank(two: Two) -> None:
    for found in two.ranks:
        assert found["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert found["mean"] == [0.5, 1.0]


@pytest.mark.slow
def test_synchronised_norm_equals_one_norm_over_all_images(two: Two) -> None:
    whole = norm_layer(nn.BatchNorm2d(4))
    x = torch.cat([batch_of(0), batch_of(1)]).requires_grad_()
    output = whole(x)
    loss_of(output, start=0).backward()
    assert isinstance(whole, nn.BatchNorm2d) and x.grad is not None

    def close(found: torch.Tensor, expected: torch.Tensor | None) -> None:
        assert expected is not None
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

    close(torch.cat([r["output"] for r in two.ranks]), output.detach())
    close(torch.cat([r["x.grad"] for r in two.ranks]), x.grad)
    for name in ("weight", "bias"):
        # each process holds the part of its own images; DistributedDataParallel joins them
        close(sum(r[f"{name}.grad"] for r in two.ranks), whole.get_parameter(name).grad)
    for found in two.ranks:
        close(found["running_mean"], whole.running_mean)
        close(found["running_var"], whole.running_var)
        assert found["tracked"] == 1
    close(torch.cat([r["eval"] for r in two.ranks]), whole.eval()(x).detach())


@pytest.mark.slow
def test_constants_far_from_zero_stay_numbers(two: Two) -> None:
    # their variance is 0, and must not become negative by rounding: the root would be no number
    for found in two.ranks:
        assert torch.isfinite(found["constants"]).all()


@pytest.mark.slow
def test_precise_statistics_are_the_same_on_both(two: Two) -> None:
    for name in ("precise_mean", "precise_var"):
        assert torch.equal(two.ranks[0][name], two.ranks[1][name])
    means = [batch_of(rank).mean(dim=(0, 2, 3)) for rank in (0, 1)]
    torch.testing.assert_close(two.ranks[0]["precise_mean"], (means[0] + means[1]) / 2)
    # means 0 and 2, variances 1 and 2: mean 1; mean of variance + mean^2 is (1 + 6) / 2, less 1
    assert two.ranks[0]["average"] == two.ranks[1]["average"] == (1.0, 2.5)


@pytest.mark.slow
def test_both_are_scored_with_the_statistics_that_the_first_one_saves(two: Two) -> None:
    assert [found["shared"] for found in two.ranks] == [7.0, 7.0]


def test_alone_it_is_a_plain_norm_and_also_where_one_process_is_joined() -> None:
    def statistics(layer: nn.Module) -> torch.Tensor:
        layer(batch_of(0))
        return torch.cat([layer.get_buffer("running_mean"), layer.get_buffer("running_var")])

    expected = statistics(norm_layer(nn.BatchNorm2d(4)))
    assert torch.equal(statistics(norm_layer(SyncBatchNorm2d(4))), expected)
    dist.init_process_group("gloo", init_method=free_url(), rank=0, world_size=1)
    try:
        assert torch.equal(statistics(norm_layer(SyncBatchNorm2d(4))), expected)
        assert collectives.gather_objects(3) == [3] and collectives.rank() == 0
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_bad_input_in_a_process_is_bad_input_of_the_command(two: Two) -> None:
    assert two.error == "data set nowhere is not there: name another"


def test_torchs_own_synchronised_norm_takes_our_layer() -> None:
    # on GPUs its forward runs on it; without processes it is a plain norm anywhere
    layer = norm_layer(SyncBatchNorm2d(4))
    found = nn.SyncBatchNorm.forward(layer, batch_of(0))  # type: ignore[arg-type]
    torch.testing.assert_close(found, norm_layer(nn.BatchNorm2d(4))(batch_of(0)))


def test_more_processes_than_gpus_is_bad_input() -> None:
    count = torch.cuda.device_count() + 1
    with pytest.raises(InputError, match="MODEL.DEVICE cpu"):
        launching.launch(
            print,
            (),
            launching.ProcessLayout(count, url="tcp://127.0.0.1:1"),
            "cuda",
        )


@pytest.mark.slow
def test_two_processes_train_one_config(two: Two) -> None:
    lines = [json.loads(line) for line in (two.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [0, 1, 1]
    assert all(math.isfinite(line["total_loss"]) for line in lines[:2])
    assert len((two.run / "results.jsonl").read_text().splitlines()) == 1  # one row, one writer
    assert "2 process(es)" in (two.run / "log.txt").read_text()
    state = torch.load(two.run / "model_final.pth", weights_only=True)
    assert len(state["random"]) == 2 and not torch.equal(*state["random"])
    images = {row["image_id"] for row in json.loads((two.run / "predictions.json").read_text())}
    assert images <= {1, 2, 3, 4}


@pytest.mark.slow
def test_both_give_an_evaluation_up_where_one_is_told_to_stop(two: Two) -> None:
    stopped = two.run.with_name("two_stopped")
    assert (stopped / "model_0000001.pth").exists() and not (two.run / "model_0000001.pth").exists()
    assert lines_of(stopped) == lines_of(two.run)
    one, other = final_state(two.run)["model"], final_state(stopped)["model"]
    assert [name for name, tensor in one.items() if not torch.equal(tensor, other[name])] == []
    assert len((stopped / "results.jsonl").read_text().splitlines()) == 1


class Shares(nn.Module):
    """A backbone that has seen the images of all processes and hands out each one's features."""

    def __init__(self, backbone: nn.Module, batch: torch.Tensor, shares: int) -> None:
        super().__init__()
        self.size_divisibility = backbone.size_divisibility
        parts = {name: maps.chunk(shares) for name, maps in backbone(batch).items()}
        self.shares = iter([{k: v[i] for k, v in parts.items()} for i in range(shares)])

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return next(self.shares)


def step_of_one(norm: str, *, objects: bool) -> tuple[dict[str, float], nn.Module]:
    """The losses and the model with the gradients of one process that has all images.

    SyncBN sees the whole batch, BN each share alone; regions are sampled, and losses divided by
    their number, share by share.
    """
    _, model = detector(norm)
    shares = [samples_of(rank, objects=objects) for rank in (0, 1)]
    backbone = model.backbone
    if norm == "SyncBN":
        whole = model.batch([sample.image for share in shares for sample in share])[0]
        model.backbone = Shares(backbone, whole, len(shares))  # type: ignore[assignment]
    found = []
    for rank, share in enumerate(shares):
        torch.manual_seed(rank)
        found.append(model([s.image for s in share], [s.targets for s in share]))
    means = {name: (found[0][name] + found[1][name]) / 2 for name in found[0]}
    sum(means.values()).backward()
    model.backbone = backbone
    return {name: loss.item() for name, loss in means.items()}, model


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["SyncBN", "BN"])
@pytest.mark.parametrize("number", [0, 1], ids=["objects in both", "objects in one"])
def test_two_processes_take_the_step_of_one_that_has_all_images(
    norm: str, number: int, two: Two
) -> None:
    losses, model = step_of_one(norm, objects=number == 0)
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    statistics = {name: b for name, b in model.named_buffers() if "running" in name}
    if norm == "BN":  # each process has its own until the detector is scored
        statistics = {}
    for process in two.detectors:
        step = process["steps"][norm][number]
        assert step["losses"] == pytest.approx(losses, rel=1e-9)
        # every parameter takes part, also where no region has an object
        assert step["gradients"].keys() == trained.keys()
        for name, expected in trained.items():
            found = step["gradients"][name]
            assert expected is not None
            assert (found - expected).norm() <= 1e-7 * expected.norm(), name
        for name, expected in statistics.items():
            torch.testing.assert_close(step["buffers"][name], expected, rtol=1e-9, atol=1e-9)
    first, second = (process["steps"][norm][number]["gradients"] for process in two.detectors)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["SyncBN", "BN"])
def test_a_step_sends_its_gradients_and_its_losses_and_no_objects(norm: str, two: Two) -> None:
    layers = sum(isinstance(m, SyncBatchNorm2d) for m in detector(norm)[1].modules())
    assert (layers > 0) == (norm == "SyncBN")
    for process in two.detectors:
        sent = process["steps"][norm][0]["sent"]
        # the first step has one bucket; each SyncBN sends once forward and once backward
        assert sent == {"c10d::allreduce_": 1 + 1 + 2 * layers}


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, 1])
def test_a_test_set_is_shared_also_where_it_cannot_be_shared_equally(
    count: int, two: Two, painted: ScenesPaths
) -> None:
    cfg = on_scenes(painted, two.run)
    first, second = (process["rows"][count] for process in two.detectors)
    assert first == second
    alone = rows_of(cfg, count)
    assert {row["image_id"] for row in alone} == set(range(1, count + 1))
    together = sorted(first, key=lambda row: row["image_id"])  # an image's rows stay in order
    assert len(together) == len(alone)
    for found, expected in zip(together, alone, strict=True):
        for key in ("image_id", "category_id"):
            assert found[key] == expected[key]
        assert found["score"] == pytest.approx(expected["score"], rel=1e-4)
        assert found["bbox"] == pytest.approx(expected["bbox"], abs=1e-2)
