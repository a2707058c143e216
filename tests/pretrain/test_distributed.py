"""Two gloo processes against one process of the same global batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from moco_det.foundation import collectives
from moco_det.foundation.errors import InputError
from moco_det.foundation.launching import ProcessLayout, launch
from pretrain.build import build_method
from pretrain.config import load_config
from pretrain.encoders import ARCHITECTURES
from pretrain.methods.base import Batch, Method
from tests.pretrain.small_trunk import SmallTrunk
from tests.pretrain.test_methods import EVERY

WORLD, BATCH, STEPS, IMAGES = 2, 16, 3, 24

VARIANTS = {
    **EVERY,
    "memory_bank, each its own draw": [
        "METHOD", "memory_bank", "MEMORY_BANK.SHARED_NEGATIVES", "False", "BANK.DTYPE", "float16",
    ],
    "nce, one draw": ["METHOD", "inst_disc", "INST_DISC.SHARED_NEGATIVES", "True"],
    "moco, one group a process": ["METHOD", "moco", "ENCODER.BN_SPLITS", "2"],
    "moco on a ResNet": ["METHOD", "moco", "ENCODER.ARCH", "resnet18"],
}  # fmt: skip


# A ResNet at 32 px has one pixel a channel at its end, where batch norm over few images magnifies
# the rounding of a sum from step to step (0.4 % in the third loss): it is compared loosely, and a
# small trunk closely.
LOOSE = {"moco on a ResNet"}
SMALL = "resnet34"


@pytest.fixture(autouse=True)
def small_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, SMALL, SmallTrunk)


def make(pairs: list[str]) -> Method:
    torch.manual_seed(0)
    sizes = {
        "ENCODER.ARCH": SMALL,
        "ENCODER.DIM": 8,
        "ENCODER.BN_SPLITS": 4,
        "MOCO.K": 40,  # not a multiple of the batch
        "MOCO.M": 0.9,
        "MEMORY_BANK.K": 10,
        "INST_DISC.K": 6,
        "SOLVER.BATCH": BATCH,
        "SOLVER.MAX_ITER": 1,
    }
    cfg = load_config(None, [*(str(x) for pair in sizes.items() for x in pair), *pairs])
    return build_method(cfg, images=IMAGES, classes=3, bfloat16=False).train()


def global_batches(views: int) -> Iterator[Batch]:
    rng = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        indices = torch.randperm(IMAGES, generator=rng)[:BATCH]
        images = tuple(torch.randn(BATCH, 3, 32, 32, generator=rng) for _ in range(views))
        layout = torch.channels_last
        yield Batch(tuple(i.contiguous(memory_format=layout) for i in images), indices, indices % 3)


def run(pairs: list[str]) -> dict[str, Any]:
    """A few steps as the training loop takes them: losses of the global batch, and the state."""
    method = make(pairs)
    wrapped: nn.Module = method
    if collectives.world_size() > 1:
        wrapped = DistributedDataParallel(method, broadcast_buffers=False)
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9)
    losses = []
    share = BATCH // collectives.world_size()
    for whole in global_batches(method.views):
        batch = whole.part(collectives.rank() * share, (collectives.rank() + 1) * share)
        out = wrapped(batch, method.prepare(batch))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        method.after_step(batch.indices, out.features)
        losses.append(float(collectives.mean(out.loss.detach())))
    state = {n: v for n, v in method.state_dict().items() if "running" not in n}
    return {"losses": losses, "state": state, "notes": method.notes()}


def exchanged() -> dict[str, Any]:
    rank = collectives.rank()
    mine = torch.arange(6.0).reshape(3, 2) + 10 * rank
    images = torch.arange(2 * 3 * 2 * 2.0).reshape(2, 3, 2, 2) + 100 * rank
    images = images.contiguous(memory_format=torch.channels_last)
    leaf = mine.clone().requires_grad_()
    whole = collectives.gather_with_grad(leaf)
    weights = torch.arange(12.0).reshape(6, 2)
    ((rank + 1) * whole * weights).sum().backward()  # process r weighs by r + 1
    refusal = ""
    try:
        make(["METHOD", "moco", "ENCODER.BN_SPLITS", "3"])
    except InputError as error:
        refusal = str(error)
    gathered = collectives.gather(images)
    return {
        "rank": rank,
        "main": collectives.is_main(),
        "gather": collectives.gather(mine),
        "gather_with_grad": whole.detach(),
        "gradient": leaf.grad,
        "images": gathered,
        "channels_last": gathered.is_contiguous(memory_format=torch.channels_last),
        "numbers": collectives.gather(torch.tensor([rank, 7])),
        "mean": collectives.mean(torch.tensor(float(rank))),
        "own_share": collectives.own_share(torch.arange(6)),
        "refusal": refusal,
    }


def worker(folder: Path) -> None:
    torch.set_num_threads(1)
    ARCHITECTURES[SMALL] = SmallTrunk
    found = {name: run(pairs) for name, pairs in VARIANTS.items()}
    torch.save({"collectives": exchanged(), "runs": found}, folder / f"{collectives.rank()}.pt")


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder: Path = tmp_path_factory.mktemp("gloo")
    launch(worker, (folder,), ProcessLayout(WORLD), "cpu")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_learn_what_one_does(name: str, processes: list[dict[str, Any]]) -> None:
    one = run(VARIANTS[name])
    for process in processes:
        two = process["runs"][name]
        for step, (ours, theirs) in enumerate(zip(two["losses"], one["losses"], strict=True)):
            loose = 1e-3 if step < 2 else 1e-2
            assert ours == pytest.approx(theirs, rel=loose if name in LOOSE else 1e-5)
        assert two["state"].keys() == one["state"].keys()
        for entry, value in one["state"].items():
            if name not in LOOSE:
                torch.testing.assert_close(
                    two["state"][entry], value, atol=1e-4, rtol=1e-4, msg=entry
                )


@pytest.mark.slow
def test_both_processes_hold_the_same_queue_and_bank(processes: list[dict[str, Any]]) -> None:
    first, second = (process["runs"] for process in processes)
    for name, entry in [("moco", "dictionary.keys"), ("memory_bank", "bank.rows")]:
        assert torch.equal(first[name]["state"][entry], second[name]["state"][entry])


@pytest.mark.slow
def test_the_log_says_over_how_many_processes_keys_are_shuffled(
    processes: list[dict[str, Any]],
) -> None:
    notes = processes[0]["runs"]["moco, one group a process"]["notes"]
    assert notes == ["shuffling BN: on over 2 groups (2 x 1, processes x sub-batches)"]


@pytest.mark.slow
def test_gathering_is_in_rank_order(processes: list[dict[str, Any]]) -> None:
    each = torch.arange(6.0).reshape(3, 2)
    images = torch.arange(24.0).reshape(2, 3, 2, 2)
    for rank, process in enumerate(processes):
        found = process["collectives"]
        assert found["rank"] == rank and found["main"] == (rank == 0)
        assert torch.equal(found["gather"], torch.cat([each, each + 10]))
        assert torch.equal(found["gather_with_grad"], torch.cat([each, each + 10]))
        assert torch.equal(found["images"], torch.cat([images, images + 100]))
        assert found["channels_last"]
        assert found["numbers"].tolist() == [0, 7, 1, 7]
        assert float(found["mean"]) == 0.5
        assert found["own_share"].tolist() == [[0, 1, 2], [3, 4, 5]][rank]


@pytest.mark.slow
def test_gradients_come_back_to_their_owner_summed_over_the_processes(
    processes: list[dict[str, Any]],
) -> None:
    weights = torch.arange(12.0).reshape(6, 2)
    for rank, process in enumerate(processes):
        expected = (1 + 2) * weights[3 * rank : 3 * rank + 3]
        assert torch.equal(process["collectives"]["gradient"], expected)


@pytest.mark.slow
def test_groups_that_do_not_divide_by_the_processes_are_refused(
    processes: list[dict[str, Any]],
) -> None:
    assert "ENCODER.BN_SPLITS 3 over 2 processes" in processes[1]["collectives"]["refusal"]


def test_without_a_process_group_there_is_one_process() -> None:
    x = torch.randn(4, 2, requires_grad=True)
    assert (collectives.world_size(), collectives.rank()) == (1, 0) and collectives.is_main()
    assert torch.equal(collectives.gather(x), x) and not collectives.gather(x).requires_grad
    assert collectives.gather_with_grad(x).requires_grad
    assert torch.equal(collectives.own_share(x), x)
    mean = collectives.mean(x)
    assert torch.equal(mean, x) and not mean.requires_grad and mean.data_ptr() != x.data_ptr()
