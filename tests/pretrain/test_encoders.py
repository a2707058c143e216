from __future__ import annotations

from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from pretrain.config import CHOICES
from pretrain.encoders import ARCHITECTURES, HEADS, Encoder, SplitBatchNorm2d, _widened


def test_choices_of_the_config_are_what_exists() -> None:
    assert set(CHOICES["ENCODER.ARCH"]) == set(ARCHITECTURES)
    assert set(CHOICES["ENCODER.HEAD"]) == set(HEADS)


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


@pytest.mark.parametrize(
    ("arch", "factor", "millions"), [("resnet50_w2x", 2, 94), ("resnet50_w4x", 4, 375)]
)
def test_wide_trunk_is_resnet50_with_every_layer_wider(
    arch: str, factor: int, millions: int
) -> None:
    with torch.device("meta"):
        wide, plain = (Encoder(a, head="fc", dim=8, bn_splits=2) for a in (arch, "resnet50"))
    one, other = plain.trunk.state_dict(), wide.trunk.state_dict()
    assert list(one) == list(other)
    for name, value in one.items():
        expected = [size * factor if axis < 2 else size for axis, size in enumerate(value.shape)]
        if name == "conv1.weight":
            expected[1] = 3
        assert list(other[name].shape) == expected
    assert wide.width == 2048 * factor
    # MoCo paper, Table 1: parameters of the feature extractor
    assert round(sum(p.numel() for p in wide.trunk.parameters()) / 1e6) == millions
    splits = [m.splits for m in wide.modules() if isinstance(m, SplitBatchNorm2d)]
    assert splits == [2] * 53


def test_wide_trunk_is_initialised_as_torchvision_does() -> None:
    torch.manual_seed(0)
    trunk = _widened(TORCHVISION["resnet18"](), 2, nn.BatchNorm2d)
    conv = trunk.layer2[0].conv1  # 128 -> 256, 3x3
    assert conv.weight.shape == (256, 128, 3, 3) and conv.stride == (2, 2)
    # Kaiming, fan out: std = sqrt(2 / (out channels x kernel))
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    with torch.no_grad():
        assert trunk.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 1000)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
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
    with pytest.raises(ValueError, match="cannot be split"):
        Encoder("resnet18", head="fc", dim=8).set_bn_splits(2)


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
