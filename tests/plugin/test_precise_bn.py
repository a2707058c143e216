"""Precise BN on detectron2: every process ends with the statistics of all processes' batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

from moco_det.foundation import collectives  # noqa: E402
from moco_det.foundation.launching import ProcessLayout, launch  # noqa: E402
from moco_det.plugin.precise_bn import SyncedPreciseBN  # noqa: E402


def batches_of(rank: int, count: int = 3) -> list[Tensor]:
    random = torch.Generator().manual_seed(10 + rank)
    return [5 * rank + torch.randn(4, 2, 3, 3, generator=random) for _ in range(count)]


def estimate(folder: Path, rank: int | None = None) -> None:
    rank = collectives.rank() if rank is None else rank
    layer = nn.BatchNorm2d(2).train()
    SyncedPreciseBN(0, layer, batches_of(rank), 3).update_stats()
    torch.save((layer.running_mean, layer.running_var), folder / f"{rank}.pt")


def test_two_processes_agree_on_the_moments_of_all_their_batches(tmp_path: Path) -> None:
    launch(estimate, (tmp_path,), ProcessLayout(2), "cpu")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    alone = []
    for rank in range(2):
        (tmp_path / "alone").mkdir(exist_ok=True)
        estimate(tmp_path / "alone", rank)
        alone.append(torch.load(tmp_path / "alone" / f"{rank}.pt"))
    mean = (alone[0][0] + alone[1][0]) / 2
    square = sum(m**2 + v for m, v in alone) / 2
    for own_mean, own_variance in found:
        torch.testing.assert_close(own_mean, mean)
        torch.testing.assert_close(own_variance, square - mean**2)
    assert abs(alone[0][0] - alone[1][0]).min() > 4  # apart they would have disagreed


def test_one_process_has_the_mean_of_its_batches_and_the_stream_goes_on(tmp_path: Path) -> None:
    layer = nn.BatchNorm2d(2).train()
    batches = batches_of(0, count=6)
    hook = SyncedPreciseBN(0, layer, batches, 3)
    for part in (batches[:3], batches[3:]):
        hook.update_stats()
        means = torch.stack([batch.mean((0, 2, 3)) for batch in part])
        torch.testing.assert_close(layer.running_mean, means.mean(0))


def test_a_network_without_trained_norms_is_left_alone() -> None:
    SyncedPreciseBN(0, nn.Conv2d(1, 1, 1), [], 3).update_stats()
