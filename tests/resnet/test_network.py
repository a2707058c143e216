"""The ResNet against torchvision's, stage by stage, and its stages, strides and frozen parts."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.resnet.layers import FrozenBatchNorm2d
from moco_det.resnet.network import FEATURES, ResNet, make_stage
from tests.golden.filling import fill

SCALED = {
    **{"resnet18_w0.5x": ("resnet18", 0.5), "resnet18_w0.25x": ("resnet18", 0.25)},
    **{"resnet34_w0.5x": ("resnet34", 0.5), "resnet34_w0.25x": ("resnet34", 0.25)},
    **{"resnet50_w0.5x": ("resnet50", 0.5), "resnet50_w0.25x": ("resnet50", 0.25)},
    **{"resnet50_w2x": ("resnet50", 2), "resnet50_w4x": ("resnet50", 4)},
}
SMALL = ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"]


def torchvision_name(name: str) -> str:
    """res2.0.conv1.norm.weight -> layer1.0.bn1.weight, res2.0.shortcut -> downsample.0"""
    stage, _, rest = name.partition(".")
    if stage == "stem":
        return rest.replace("conv1.norm", "bn1")
    rest = rest.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
    for i in (1, 2, 3):
        rest = rest.replace(f"conv{i}.norm", f"bn{i}")
    return f"layer{int(stage[3]) - 1}.{rest}"


@pytest.mark.parametrize("name", SMALL)
def test_it_computes_what_torchvisions_does(name: str) -> None:
    with torch.device("meta"):  # no time for random weights
        ours = ResNet(ARCHITECTURES[name]).eval()
        theirs = torchvision.models.get_model(name).eval()
    ours.to_empty(device="cpu")
    fill(ours)
    theirs.fc = nn.Identity()
    given = {torchvision_name(n): t for n, t in ours.state_dict().items()}
    theirs.load_state_dict(given, strict=True, assign=True)
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    expected: dict[str, Tensor] = {}
    for stage, layer in zip(
        FEATURES,
        [theirs.maxpool, *(theirs.get_submodule(f"layer{i}") for i in range(1, 5))],
        strict=True,
    ):
        layer.register_forward_hook(lambda _m, _i, out, stage=stage: expected.update({stage: out}))
    with torch.no_grad():
        theirs(x)
        found = ours(x)
    assert list(found) == list(FEATURES)
    for stage in FEATURES:
        scale = float(expected[stage].abs().max())
        assert scale > 0.1
        torch.testing.assert_close(found[stage] / scale, expected[stage] / scale)


# Bottleneck networks that torchvision can build but has no name for: blocks, groups, width
UNNAMED = {
    "resnext50_32x8d": ([3, 4, 6, 3], 32, 8),
    "resnext101_32x4d": ([3, 4, 23, 3], 32, 4),
}


def torchvisions(name: str) -> torchvision.models.ResNet:
    if name not in UNNAMED:
        return torchvision.models.get_model(name)
    layers, groups, width = UNNAMED[name]
    blocks = torchvision.models.resnet.Bottleneck
    return torchvision.models.ResNet(blocks, layers, groups=groups, width_per_group=width)


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n not in SCALED])
def test_it_has_torchvisions_tensors(name: str) -> None:
    with torch.device("meta"):
        ours = ResNet(ARCHITECTURES[name])
        theirs = torchvisions(name)
    shapes = {torchvision_name(n): t.shape for n, t in ours.state_dict().items()}
    expected = {n: t.shape for n, t in theirs.state_dict().items() if not n.startswith("fc.")}
    assert shapes == expected


@pytest.mark.parametrize("name", SCALED)
def test_every_layer_of_a_narrow_or_wide_network_is_scaled(name: str) -> None:
    """MoCo paper, Table 1: the stem too; the image keeps its 3 channels."""
    depth, factor = SCALED[name]
    with torch.device("meta"):
        scaled = ResNet(ARCHITECTURES[name]).state_dict()
        plain = ResNet(ARCHITECTURES[depth]).state_dict()
    assert scaled.keys() == plain.keys()
    for key, tensor in plain.items():
        channels = [size if size == 3 else size * factor for size in tensor.shape[:2]]
        assert list(scaled[key].shape) == channels + list(tensor.shape[2:]), key


def test_channels_and_strides() -> None:
    with torch.device("meta"):
        net = ResNet(ARCHITECTURES["resnet50"])
        found = net(torch.zeros(1, 3, 64, 96))
    assert {n: tuple(t.shape) for n, t in found.items()} == {
        "stem": (1, 64, 16, 24),
        "res2": (1, 256, 16, 24),
        "res3": (1, 512, 8, 12),
        "res4": (1, 1024, 4, 6),
        "res5": (1, 2048, 2, 3),
    }
    assert net.channels == {n: t.shape[1] for n, t in found.items()}
    assert net.strides == {n: 64 // t.shape[2] for n, t in found.items()}


def test_only_the_stages_that_are_needed_exist() -> None:
    with torch.device("meta"):
        net = ResNet(ARCHITECTURES["resnet18"], norm="BN", out_features=["res3"])
    assert {name for name, _ in net.named_children()} == {"stem", "res2", "res3"}
    with pytest.raises(ValueError, match="res9"):
        ResNet(ARCHITECTURES["resnet18"], norm="BN", out_features=["res9"])


def test_a_dilated_last_stage_keeps_its_resolution_and_its_tensors() -> None:
    with torch.device("meta"):
        plain = ResNet(ARCHITECTURES["resnet50"], norm="BN", out_features=["res5"])
        dilated = ResNet(
            ARCHITECTURES["resnet50"], norm="BN", out_features=["res5"], res5_dilation=2
        )
        found = dilated(torch.zeros(1, 3, 64, 64))["res5"]
    assert tuple(found.shape) == (1, 2048, 4, 4) and dilated.strides["res5"] == 16
    assert {n: t.shape for n, t in plain.state_dict().items()} == {
        n: t.shape for n, t in dilated.state_dict().items()
    }
    with pytest.raises(ValueError, match="bottleneck"):
        make_stage("res5", ARCHITECTURES["resnet18"], norm="BN", stride_in_1x1=False, dilation=2)


@pytest.mark.parametrize("in_1x1", [False, True])
def test_the_stride_of_a_bottleneck_sits_where_it_is_put(in_1x1: bool) -> None:
    with torch.device("meta"):
        net = ResNet(ARCHITECTURES["resnet50"], stride_in_1x1=in_1x1)
    strides = [net.get_submodule(f"res3.0.conv{i}").stride for i in (1, 2, 3)]
    assert strides == ([(2, 2), (1, 1), (1, 1)] if in_1x1 else [(1, 1), (2, 2), (1, 1)])
    assert net.get_submodule("res3.0.shortcut").stride == (2, 2)
    assert net.get_submodule("res2.0.conv1").stride == (1, 1)


@pytest.mark.parametrize("freeze_at", [0, 1, 2, 3, 5])
def test_freezing_counts_the_stem_as_one(freeze_at: int) -> None:
    net = ResNet(
        ARCHITECTURES["resnet18"],
        norm="BN",
        out_features=["res5"],
        freeze_at=freeze_at,
    )
    for index, stage in enumerate(FEATURES):
        module = net.get_submodule(stage)
        frozen = index < freeze_at
        assert any(p.requires_grad for p in module.parameters()) == (not frozen)
        norms = {type(m) for m in module.modules() if "Norm" in type(m).__name__}
        assert norms == {FrozenBatchNorm2d if frozen else nn.BatchNorm2d}


def test_freezing_keeps_what_the_norms_had_learned() -> None:
    net = ResNet(ARCHITECTURES["resnet18"], norm="SyncBN", out_features=["res2"]).eval()
    fill(net)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = net(x)["res2"]
        net.freeze(2)
        torch.testing.assert_close(net.train()(x)["res2"], before)
