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
from moco_det.errors import InputError
from moco_det.resnet.layers import SyncBatchNorm2d
from moco_det.standalone import RunOptions, distributed
from tests.standalone.tiny import on_scenes
from tests.standalone.workers import batch_of, exercise, loss_of, norm_layer


def free_url() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{s.getsockname()[1]}"


@dataclass
class Two:
    """What two processes found, the folder of the run they made, and the error they ended with."""

    ranks: list[dict[str, Any]]
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
    with pytest.raises(InputError) as caught:
        distributed.launch(
            exercise,
            (folder, cfg, RunOptions("R18_FPN")),
            processes=2,
            machines=1,
            machine_rank=0,
            url=free_url(),
            device="cpu",
        )
    found = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    return Two(found, folder / "two", str(caught.value))


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


def test_alone_it_is_a_plain_norm_and_also_where_one_process_is_joined() -> None:
    def statistics(layer: nn.Module) -> torch.Tensor:
        layer(batch_of(0))
        return torch.cat([layer.get_buffer("running_mean"), layer.get_buffer("running_var")])

    expected = statistics(norm_layer(nn.BatchNorm2d(4)))
    assert torch.equal(statistics(norm_layer(SyncBatchNorm2d(4))), expected)
    dist.init_process_group("gloo", init_method=free_url(), rank=0, world_size=1)
    try:
        assert torch.equal(statistics(norm_layer(SyncBatchNorm2d(4))), expected)
        assert distributed.gather(3) == [3] and distributed.rank() == 0
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
        distributed.launch(
            print,
            (),
            processes=count,
            machines=1,
            machine_rank=0,
            url="tcp://127.0.0.1:1",
            device="cuda",
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
