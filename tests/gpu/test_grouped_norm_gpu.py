"""Batch norm in groups in Triton; with TRITON_INTERPRET=1 on a CPU too, slowly."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")
from pretrain import grouped_norm  # noqa: E402
from pretrain.encoders import SplitBatchNorm2d  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("triton_runs")]


def check(
    shape: tuple[int, ...],
    groups: int,
    dtype: torch.dtype,
    device: str,
    *,
    mean: float = 0.0,
    layout: torch.memory_format = torch.channels_last,
) -> None:
    """Output, gradients and buffers are those of a call per group in float64."""
    torch.manual_seed(0)
    split = SplitBatchNorm2d(shape[1], splits=groups)
    for vector in (split.weight, split.bias, split.running_mean):
        nn.init.uniform_(vector)
    split.to(device)
    slow = copy.deepcopy(split).double()
    x = (torch.randn(shape) + mean).to(device, dtype).to(memory_format=layout)
    gradient = torch.randn(shape).to(device, dtype)
    x.requires_grad_()
    y = x.detach().double().requires_grad_()
    out = split.grouped_kernel(x)
    out.backward(gradient)
    expected = slow.call_per_group(y)
    expected.backward(gradient.double())
    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    # near 1000 neighbours in float32 are 6e-5 apart
    own = 3e-4 if mean == 1000.0 else 1e-5
    of_map = own if dtype == torch.float32 else 2**-7
    near(out, expected, of_map)
    near(x.grad, y.grad, of_map)
    near(split.weight.grad, slow.weight.grad, own)
    near(split.bias.grad, slow.bias.grad, own)
    for found, wanted in zip(split.buffers(), slow.buffers(), strict=True):
        near(found, wanted, 1e-6)


def near(found: Tensor | None, expected: Tensor | None, tolerance: float) -> None:
    """Within so much of the largest number expected."""
    assert found is not None and expected is not None
    error = (found.double() - expected.double()).abs().max()
    assert error <= tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize(
    ("shape", "groups"),
    # an odd count of everything, several blocks of channels and rows, one cell, many rows
    [((9, 5, 7, 3), 3), ((4, 70, 9, 9), 2), ((24, 16, 1, 1), 3), ((6, 3, 40, 40), 3)],
)
def test_all_groups_at_once_is_a_call_per_group(
    shape: tuple[int, ...], groups: int, mean: float, dtype: torch.dtype, device: str
) -> None:
    check(shape, groups, dtype, device, mean=mean)


@pytest.mark.parametrize(("programs", "tile"), [(8, 64), (1024, 64)])
def test_it_does_not_matter_how_rows_are_split(
    programs: int, tile: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouped_norm, "PROGRAMS", programs)
    monkeypatch.setattr(grouped_norm, "TILE", tile)
    check((4, 5, 9, 9), 2, torch.float32, device)


def test_a_map_of_a_resnet(device: str) -> None:
    if device == "cpu":
        pytest.skip("takes minutes interpreted")
    for dtype in (torch.float32, torch.bfloat16):
        check((64, 64, 56, 56), 8, dtype, device, mean=1.0)
        check((64, 2048, 7, 7), 8, dtype, device, mean=1.0)


def test_channels_may_come_first(device: str) -> None:
    check((16, 16, 6, 5), 4, torch.float32, device, layout=torch.contiguous_format)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [8, 10])
def test_any_batch_is_normalised_in_groups(batch: int, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    split = SplitBatchNorm2d(3, splits=4).to(device, dtype)
    x = torch.randn(batch, 3, 5, 5).to(device, dtype)
    torch.testing.assert_close(split(x), copy.deepcopy(split).call_per_group(x))
