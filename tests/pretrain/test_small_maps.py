"""Convolutions on the smallest maps as matrix products, held to nn.Conv2d."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from pretrain.encoders import Encoder
from pretrain.small_maps import SmallMapConv2d, use_small_maps


def with_gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, and gradients of a random loss to the input and every parameter."""
    x = x.clone().requires_grad_()
    out = network(x)
    seeds = torch.Generator().manual_seed(3)
    out.backward(torch.randn(out.shape, generator=seeds, dtype=out.dtype))
    return [out, x.grad, *(p.grad for p in network.parameters())]


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2)])
def test_a_layer_is_the_convolution(kernel: int, stride: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(5, 7, kernel, stride=stride, padding=kernel // 2, bias=False).double()
    small = copy.deepcopy(plain)
    use_small_maps(small)
    assert type(small) is SmallMapConv2d
    x = torch.randn(4, 5, *size, dtype=torch.float64)
    for ours, theirs in zip(with_gradients(small, x), with_gradients(plain, x), strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("make", [resnet18, resnet50])
@pytest.mark.parametrize("size", [32, 64])
def test_a_network_on_small_images_is_torchvisions(make, size: int) -> None:
    torch.manual_seed(0)
    plain = make().double()
    small = copy.deepcopy(plain)
    use_small_maps(small)
    assert list(small.state_dict()) == list(plain.state_dict())
    x = torch.randn(16, 3, size, size, dtype=torch.float64)
    for ours, theirs in zip(with_gradients(small, x), with_gradients(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_an_encoder_uses_it_for_its_blocks_and_never_for_grouped_ones() -> None:
    blocks = Encoder("resnet18", head="fc", dim=8).trunk
    kinds = {name: type(m) for name, m in blocks.named_modules() if isinstance(m, nn.Conv2d)}
    assert kinds.pop("conv1") is nn.Conv2d and set(kinds.values()) == {SmallMapConv2d}
    grouped = Encoder("resnext50_32x8d", head="fc", dim=8).trunk
    assert type(grouped.layer4[0].conv2) is nn.Conv2d
