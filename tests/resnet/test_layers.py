"""The layers below the ResNet: norms, convolution with its norm, initialisations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from moco_det.resnet.layers import (
    NORMS,
    Conv2d,
    FrozenBatchNorm2d,
    SyncBatchNorm2d,
    make_norm,
    msra_fill,
    xavier_fill,
)


def test_frozen_norm_equals_a_norm_in_evaluation_and_stays_constant() -> None:
    torch.manual_seed(0)
    norm, frozen = nn.BatchNorm2d(3), FrozenBatchNorm2d(3)
    with torch.no_grad():
        for tensor in norm.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(3) + 0.5)
        for name, buffer in frozen.named_buffers():
            buffer.copy_(norm.state_dict()[name])
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(frozen.train()(x), norm.eval()(x))
    assert list(frozen.parameters()) == []
    assert sorted(frozen.state_dict()) == ["bias", "running_mean", "running_var", "weight"]


def test_a_frozen_norm_that_nobody_loaded_changes_nothing() -> None:
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(FrozenBatchNorm2d(3)(x), x, atol=1e-6, rtol=1e-6)


def test_norms_by_name() -> None:
    kinds = {name: type(make_norm(name, 32)) for name in NORMS}
    assert kinds == {
        "": type(None),
        "BN": nn.BatchNorm2d,
        "SyncBN": SyncBatchNorm2d,
        "FrozenBN": FrozenBatchNorm2d,
        "GN": nn.GroupNorm,
    }


def test_a_convolution_with_norm_has_no_bias_and_the_norm_is_its_child() -> None:
    plain, normed = Conv2d(3, 4, 3), Conv2d(3, 4, 3, norm="BN")
    assert sorted(plain.state_dict()) == ["bias", "weight"]
    assert [n for n in normed.state_dict() if not n.endswith("tracked")] == [
        "weight",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
    ]


def test_the_convolution_comes_first_then_the_norm_then_relu() -> None:
    layer = Conv2d(1, 1, 1, norm="BN", relu=True).eval()
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.norm.running_mean.fill_(1.0)  # type: ignore[union-attr,operator]
        layer.norm.running_var.fill_(4.0 - 1e-5)  # type: ignore[union-attr,operator]
    x = torch.tensor([-1.0, 1.0, 2.0]).reshape(1, 1, 1, 3)
    # (2 x - 1) / 2 = -1.5, 0.5, 1.5
    torch.testing.assert_close(layer(x).flatten(), torch.tensor([0.0, 0.5, 1.5]))


def test_initialisations_have_the_right_spread() -> None:
    torch.manual_seed(0)
    he = nn.Conv2d(64, 128, 3)
    msra_fill(he)
    # normal with variance 2 / fan out, fan out 128 * 3 * 3
    assert he.weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02)
    uniform = nn.Linear(300, 200)
    xavier_fill(uniform)
    # uniform within sqrt(3 / fan in)
    assert uniform.weight.abs().max().item() == pytest.approx(math.sqrt(3 / 300), rel=0.01)
    assert uniform.weight.std().item() == pytest.approx(math.sqrt(1 / 300), rel=0.02)
    assert he.bias is not None
    assert he.bias.abs().max() == 0 and uniform.bias.abs().max() == 0


@pytest.mark.parametrize("name", ["BN", "SyncBN", "FrozenBN"])
def test_a_constant_norm_goes_into_the_convolution_and_the_numbers_stay(name: str) -> None:
    torch.manual_seed(0)
    layer = Conv2d(3, 4, 3, padding=1, norm=name, relu=True)
    with torch.no_grad():
        for tensor in layer.norm.state_dict().values():  # type: ignore[union-attr,operator]
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(4) + 0.5)
    x = torch.randn(2, 3, 6, 5)
    calls: list[object] = []
    layer.norm.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr,operator]
    apart = torch.relu(layer.eval().norm(nn.Conv2d.forward(layer, x)))  # type: ignore[operator]
    assert len(calls) == 1
    with torch.no_grad():
        torch.testing.assert_close(layer(x), apart.detach(), atol=1e-5, rtol=1e-5)
    assert len(calls) == 1  # folded: the norm itself was not called
    found = layer.train()(x)  # where BN learns, it is called
    assert len(calls) == (1 if name == "FrozenBN" else 2)
    gradient = torch.autograd.grad(found.sum(), layer.weight)[0]
    if name == "FrozenBN":
        reference = torch.autograd.grad(apart.sum(), layer.weight)[0]
        torch.testing.assert_close(gradient, reference, atol=1e-4, rtol=1e-4)
