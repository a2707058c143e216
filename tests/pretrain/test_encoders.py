from __future__ import annotations

from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from pretrain.encoders import ARCHITECTURES, Encoder, SplitBatchNorm2d, _scaled

TORCHVISION = {
    "resnet18": torchvision.models.resnet18,
    "resnet34": torchvision.models.resnet34,
    "resnet50": torchvision.models.resnet50,
    "resnet101": torchvision.models.resnet101,
    "resnext50_32x8d": partial(torchvision.models.resnet50, groups=32, width_per_group=8),
}


@pytest.mark.parametrize("arch", TORCHVISION)
@pytest.mark.parametrize("splits", [1, 4])
def test_trunk_has_torchvision_names_and_shapes_without_fc(arch: str, splits: int) -> None:
    with torch.device("meta"):
        reference = TORCHVISION[arch]()
        encoder = Encoder(arch, head="mlp", dim=8, bn_splits=splits)
    expected = {k: v.shape for k, v in reference.state_dict().items() if not k.startswith("fc.")}
    assert {k: v.shape for k, v in encoder.trunk.state_dict().items()} == expected
    assert encoder.width == reference.fc.in_features


SCALED = {
    **{"resnet18_w0.5x": ("resnet18", 0.5), "resnet18_w0.25x": ("resnet18", 0.25)},
    **{"resnet34_w0.5x": ("resnet34", 0.5), "resnet34_w0.25x": ("resnet34", 0.25)},
    **{"resnet50_w0.5x": ("resnet50", 0.5), "resnet50_w0.25x": ("resnet50", 0.25)},
    **{"resnet50_w2x": ("resnet50", 2), "resnet50_w4x": ("resnet50", 4)},
}


@pytest.mark.parametrize("arch", SCALED)
def test_every_layer_of_a_narrow_or_wide_trunk_is_scaled(arch: str) -> None:
    plain_arch, factor = SCALED[arch]
    with torch.device("meta"):
        scaled, plain = (Encoder(a, head="fc", dim=8, bn_splits=2) for a in (arch, plain_arch))
    one, other = plain.trunk.state_dict(), scaled.trunk.state_dict()
    assert list(one) == list(other)
    for name, value in one.items():
        expected = [size * factor if axis < 2 else size for axis, size in enumerate(value.shape)]
        if name == "conv1.weight":
            expected[1] = 3
        assert list(other[name].shape) == expected
    assert scaled.width == plain.width * factor
    splits = [m.splits for m in scaled.modules() if isinstance(m, SplitBatchNorm2d)]
    assert splits == [2] * (len([m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]))


@pytest.mark.parametrize(("arch", "millions"), [("resnet50_w2x", 94), ("resnet50_w4x", 375)])
def test_wide_trunks_have_the_parameters_of_the_paper(arch: str, millions: int) -> None:
    """MoCo paper, Table 1: parameters of the feature extractor."""
    with torch.device("meta"):
        trunk = Encoder(arch, head="fc", dim=8).trunk
    assert round(sum(p.numel() for p in trunk.parameters()) / 1e6) == millions


@pytest.mark.parametrize("factor", [0.25, 0.5, 2])
def test_a_scaled_trunk_is_initialised_as_torchvision_does(factor: float) -> None:
    torch.manual_seed(0)
    trunk = _scaled(TORCHVISION["resnet18"](), factor, nn.BatchNorm2d)
    for name, module in trunk.named_modules():
        if isinstance(module, nn.Conv2d):
            # Kaiming, fan out: std = sqrt(2 / (out channels x kernel))
            expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            spread = 5 / (2 * module.weight.numel()) ** 0.5  # five standard errors
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=spread), name
        elif isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all()) and not module.bias.any()
    with torch.no_grad():
        assert trunk.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 1000)


def test_weights_of_a_seed_stay_those_of_a_scaled_trunk() -> None:
    """Numbers that the first version drew: another order of draws would make other runs."""
    torch.manual_seed(3)
    trunk = ARCHITECTURES["resnet50_w2x"](nn.BatchNorm2d)
    layers = (trunk.conv1, trunk.layer4[-1].conv2, trunk.fc)
    first = [float(layer.weight.detach().flatten()[0]) for layer in layers]
    assert first == pytest.approx([0.0076913, -0.0130331, -0.0033749], abs=1e-6)


@pytest.mark.parametrize("arch", TORCHVISION)
def test_weights_of_a_seed_are_those_of_torchvision(arch: str) -> None:
    torch.manual_seed(3)
    reference = TORCHVISION[arch]().state_dict()
    torch.manual_seed(3)
    trunk = Encoder(arch, head="fc", dim=8).trunk.state_dict()
    assert all(torch.equal(value, reference[name]) for name, value in trunk.items())


def test_groups_of_batch_norm_can_be_dealt_out_to_parts() -> None:
    torch.manual_seed(0)
    encoder = Encoder("resnet18", head="fc", dim=8, bn_splits=4)
    x = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        whole = encoder(x)
        encoder.set_bn_splits(2)
        parts = torch.cat([encoder(x[:8]), encoder(x[8:])])
        torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)
        other = encoder(x)
    assert float((other - whole).abs().max()) > 1e-2


def test_features_equal_torchvision_with_the_same_weights() -> None:
    reference = torchvision.models.resnet18()
    encoder = Encoder("resnet18", head="fc", dim=8, bn_splits=2)
    state = {k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")}
    encoder.trunk.load_state_dict(state)
    reference.fc = nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder.eval().features(x), reference.eval()(x))


def test_heads_have_the_layers_of_the_two_papers() -> None:
    fc, mlp = (Encoder("resnet18", head=h, dim=8).head for h in ("fc", "mlp"))
    assert {k: tuple(v.shape) for k, v in fc.state_dict().items()} == {
        "weight": (8, 512),
        "bias": (8,),
    }
    assert {k: tuple(v.shape) for k, v in mlp.state_dict().items()} == {
        "0.weight": (512, 512),
        "0.bias": (512,),
        "2.weight": (8, 512),
        "2.bias": (8,),
    }


@pytest.mark.parametrize("batch", [8, 10])
def test_split_batch_norm_normalises_each_group_alone(batch: int) -> None:
    torch.manual_seed(0)
    split = SplitBatchNorm2d(3, splits=4)
    nn.init.uniform_(split.weight)
    x = torch.randn(batch, 3, 5, 5) * 3 + 1
    out = split(x)
    for part, got in zip(x.tensor_split(4), out.tensor_split(4), strict=True):
        plain = nn.BatchNorm2d(3)
        plain.load_state_dict({**split.state_dict(), **{"running_mean": torch.zeros(3)}})
        torch.testing.assert_close(got, plain(part))


def test_split_batch_norm_takes_one_running_step_to_the_mean_of_the_groups() -> None:
    torch.manual_seed(0)
    split, x = SplitBatchNorm2d(3, splits=2), torch.randn(8, 3, 4, 4) + 2
    split(x)
    groups = [x[:4], x[4:]]
    means = torch.stack([g.mean(dim=(0, 2, 3)) for g in groups]).mean(dim=0)
    variances = torch.stack([g.var(dim=(0, 2, 3)) for g in groups]).mean(dim=0)
    torch.testing.assert_close(split.running_mean, 0.1 * means)
    torch.testing.assert_close(split.running_var, 0.9 + 0.1 * variances)
    assert int(split.num_batches_tracked) == 1


def test_split_batch_norm_of_one_group_and_in_eval_is_plain() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, 4, 4)
    one, plain = SplitBatchNorm2d(3, splits=1), nn.BatchNorm2d(3)
    torch.testing.assert_close(one(x), plain(x))
    three = SplitBatchNorm2d(3, splits=3)
    three.load_state_dict(plain.state_dict())
    torch.testing.assert_close(three.eval()(x), plain.eval()(x))


def test_split_batch_norm_gradient_is_that_of_the_groups() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    split = SplitBatchNorm2d(2, splits=2).double()
    assert torch.autograd.gradcheck(lambda v: split(v).pow(3).sum(), (x,))
