"""The table of shapes against torchvision's networks and moco_det.resnet."""

from __future__ import annotations

import pytest
import torch
import torchvision

from moco_det.resnet.architectures import ARCHITECTURES, BLOCKS, Architecture
from moco_det.resnet.network import ResNet
from moco_det.weights.architectures import UnknownArchitecture, backbone_tensors, deduce
from moco_det.weights.vocabularies import from_detectron2


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(tensor.shape)
        for name, tensor in module.state_dict().items()
        if not name.endswith("num_batches_tracked") and not name.startswith("fc.")
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_config_keys_are_those_of_the_network_that_is_built(name: str) -> None:
    keys = {key.rpartition(".")[2].lower(): n for key, n in ARCHITECTURES[name].keys.items()}
    depth = keys.pop("depth")
    assert Architecture(BLOCKS[depth], depth >= 50, **keys) == ARCHITECTURES[name]
    assert len(ARCHITECTURES) == 20 and f"{depth}" in name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_names_and_shapes_are_those_of_the_resnet_in_detectron2s_names(architecture: str) -> None:
    with torch.device("meta"):
        model = ResNet(ARCHITECTURES[architecture], norm="BN")
    expected = {t.detectron2: t.shape for t in backbone_tensors(ARCHITECTURES[architecture])}
    assert shapes_of(model) == expected


NAMED = [name for name in ARCHITECTURES if name in torchvision.models.list_models()]
UNNAMED = [name for name in ARCHITECTURES if name not in NAMED]


@pytest.mark.parametrize("architecture", NAMED)
def test_true_torchvision_shapes_are_recognised(architecture: str) -> None:
    with torch.device("meta"):
        shapes = shapes_of(torchvision.models.get_model(architecture))
    tensors = backbone_tensors(ARCHITECTURES[architecture])
    assert shapes == {t.torchvision: t.shape for t in tensors}
    assert deduce(shapes) == architecture


def test_networks_that_torchvision_has_no_name_for_are_few() -> None:
    assert set(UNNAMED) == {
        *("resnext50_32x8d", "resnext101_32x4d"),
        *("resnet18_w0.5x", "resnet18_w0.25x", "resnet34_w0.5x", "resnet34_w0.25x"),
        *("resnet50_w0.5x", "resnet50_w0.25x", "resnet50_w2x", "resnet50_w4x"),
    }


@pytest.mark.parametrize("architecture", UNNAMED)
def test_networks_that_torchvision_has_no_name_for_are_recognised(architecture: str) -> None:
    tensors = backbone_tensors(ARCHITECTURES[architecture])
    assert deduce({t.torchvision: t.shape for t in tensors}) == architecture


def test_the_encoders_of_pretraining_are_recognised() -> None:
    """pretrain/ writes these names; each must be found from its shapes alone."""
    from pretrain.encoders import ARCHITECTURES as ENCODERS

    for architecture, build in ENCODERS.items():
        with torch.device("meta"):
            shapes = shapes_of(build(torch.nn.BatchNorm2d))
        assert deduce(shapes) == architecture


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_renaming_there_and_back_is_the_identity(architecture: str) -> None:
    for tensor in backbone_tensors(ARCHITECTURES[architecture]):
        assert from_detectron2(tensor.detectron2) == tensor.torchvision


def resnet18_shapes() -> dict[str, tuple[int, ...]]:
    return {t.torchvision: t.shape for t in backbone_tensors(ARCHITECTURES["resnet18"])}


def test_a_small_image_stem_is_refused_by_name() -> None:
    shapes = {**resnet18_shapes(), "conv1.weight": (64, 3, 3, 3)}
    with pytest.raises(UnknownArchitecture, match="first convolution is 64x3x3x3"):
        deduce(shapes)


def test_another_width_is_refused_with_what_was_found() -> None:
    shapes = {
        t.torchvision: t.shape
        for t in backbone_tensors(Architecture((2, 2, 2, 2), False, 1, 64, 48, 48))
    }
    with pytest.raises(UnknownArchitecture, match=r"basic blocks 2-2-2-2.*channels 0\.75x; known"):
        deduce(shapes)


@pytest.mark.parametrize("name", ["layer1.0.conv1.weight", "layer4.1.conv2.weight"])
def test_one_layer_of_another_width_is_named(name: str) -> None:
    shapes = {t.torchvision: t.shape for t in backbone_tensors(ARCHITECTURES["resnet18_w0.5x"])}
    wide = resnet18_shapes()[name]
    with pytest.raises(
        UnknownArchitecture, match=rf"{name} is {'x'.join(map(str, wide))}, resnet18_w0.5x"
    ):
        deduce({**shapes, name: wide})


def test_another_depth_is_refused_with_what_was_found() -> None:
    shapes = resnet18_shapes()
    shapes.update({n.replace("layer1.1", "layer1.2"): s for n, s in shapes.items()})
    with pytest.raises(UnknownArchitecture, match="basic blocks 3-2-2-2"):
        deduce(shapes)


def test_a_missing_tensor_is_named() -> None:
    shapes = resnet18_shapes()
    del shapes["layer3.0.downsample.1.running_var"]
    with pytest.raises(UnknownArchitecture, match="lacks 1 of 100.*layer3.0.downsample.1"):
        deduce(shapes)


def test_a_missing_tensor_that_tells_the_groups_is_named() -> None:
    shapes = resnet18_shapes()
    del shapes["layer1.0.conv2.weight"]
    with pytest.raises(
        UnknownArchitecture, match="layer1.0.conv2.weight is missing: save the whol"
    ):
        deduce(shapes)


def test_a_single_number_for_a_tensor_is_not_called_absent() -> None:
    shapes = {**resnet18_shapes(), "bn1.bias": ()}
    with pytest.raises(UnknownArchitecture, match="bn1.bias is a single number, resnet18 has 64"):
        deduce(shapes)


def test_another_shape_is_named() -> None:
    shapes = {**resnet18_shapes(), "layer4.1.bn2.bias": (511,)}
    with pytest.raises(UnknownArchitecture, match="layer4.1.bn2.bias is 511, resnet18 has 512"):
        deduce(shapes)
