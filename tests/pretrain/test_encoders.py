from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from pretrain.config import CHOICES
from pretrain.encoders import ARCHITECTURES, HEADS, Encoder, SplitBatchNorm2d


def test_choices_of_the_config_are_what_exists() -> None:
    assert set(CHOICES["ENCODER.ARCH"]) == set(ARCHITECTURES)
    assert set(CHOICES["ENCODER.HEAD"]) == set(HEADS)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("splits", [1, 4])
def test_trunk_has_torchvision_names_and_shapes_without_fc(arch: str, splits: int) -> None:
    reference = (
        torchvision.models.resnet18() if arch == "resnet18" else torchvision.models.resnet50()
    )
    expected = {k: v.shape for k, v in reference.state_dict().items() if not k.startswith("fc.")}
    encoder = Encoder(arch, head="mlp", dim=8, bn_splits=splits)
    assert {k: v.shape for k, v in encoder.trunk.state_dict().items()} == expected


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
