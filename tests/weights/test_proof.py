"""Proofs that fail write nothing; random-looking weights are called out."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.weights.architectures import STAGES
from moco_det.weights.convert import convert
from moco_det.weights.number_checks import check_numbers, untrained
from moco_det.weights.proof import forward_difference, source_features
from moco_det.weights.summaries import conversion_lines
from tests.weights.checkpoints import in_detectron2_names, nothing_but, random_arrays


def spoiled(query: OrderedDict[str, Tensor], name: str, value: float) -> dict[str, Tensor]:
    state = dict(query)
    state[name] = query[name].clone()
    state[name].view(-1)[3] = value
    return state


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layer2.0.conv1.weight", float("nan"), "layer2.0.conv1.weight holds 1 values that are"),
        ("bn1.running_mean", float("inf"), "not finite"),
        ("layer4.1.bn2.running_var", 0.0, "layer4.1.bn2.running_var has variances"),
        ("layer4.1.bn2.running_var", -1.0, "not positive"),
        ("layer3.0.conv2.weight", 3e38, "res4|finite"),
    ],
)
def test_a_failed_proof_writes_nothing(
    tmp_path: Path, query: OrderedDict[str, Tensor], name: str, value: float, message: str
) -> None:
    state = spoiled(query, name, value)
    if value == 3e38:
        state[name] = torch.full_like(state[name], 3e38)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "x.pth", tmp_path / "b.pkl")
    assert nothing_but(tmp_path, "x.pth")


def test_whole_numbers_are_no_weights(tmp_path: Path, query: OrderedDict[str, Tensor]) -> None:
    torch.save({**query, "bn1.weight": torch.ones(64, dtype=torch.int32)}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="bn1.weight holds int32.*save the weights as float32"):
        convert(tmp_path / "x.pth", tmp_path / "b.pkl")


@pytest.mark.parametrize("architecture", ["resnet18", "resnext50_32x4d"])
def test_the_sources_features_are_torchvisions_bit_for_bit(architecture: str) -> None:
    """The proof writes torchvision's network as formulas: here it is held against the original."""
    arrays = random_arrays(architecture)
    with torch.device("meta"):
        network = torchvision.models.get_model(architecture).eval()
    network.fc = torch.nn.Identity()
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    counters = {n: torch.tensor(0) for n in network.state_dict() if n.endswith("tracked")}
    network.load_state_dict({**state, **counters}, strict=True, assign=True)
    theirs: dict[str, Tensor] = {}
    places = ["maxpool", "layer1", "layer2", "layer3", "layer4"]
    for stage, place in zip(STAGES, places, strict=True):
        network.get_submodule(place).register_forward_hook(
            lambda _m, _i, out, stage=stage: theirs.update({stage: out})
        )
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        network(images)
        ours = source_features(arrays, ARCHITECTURES[architecture], images, stride_in_1x1=False)
    assert list(ours) == list(STAGES)
    assert all(torch.equal(ours[stage], theirs[stage]) for stage in STAGES)


def test_a_network_that_gives_nothing_proves_nothing(
    tmp_path: Path, query: OrderedDict[str, Tensor]
) -> None:
    dead = {name: t if "running" in name else torch.zeros_like(t) for name, t in query.items()}
    torch.save(dead, tmp_path / "x.pth")
    with pytest.raises(InputError, match="every feature of stem is 0"):
        convert(tmp_path / "x.pth", tmp_path / "b.pkl")
    assert nothing_but(tmp_path, "x.pth")


@pytest.mark.parametrize("architecture", ["resnet18", "resnext50_32x4d"])
def test_both_networks_agree_at_every_stage(architecture: str) -> None:
    arrays = random_arrays(architecture)
    target = in_detectron2_names(arrays, architecture)
    difference = forward_difference(
        arrays, target, ARCHITECTURES[architecture], stride_in_1x1=False, path="x"
    )
    assert difference == dict.fromkeys(STAGES, 0.0)  # so that the stored figure is no machine's own


@pytest.mark.parametrize(
    ("one", "other", "stage"),
    [
        ("res2.0.conv1.weight", "res2.1.conv2.weight", "res2"),
        ("res5.0.conv1.norm.bias", "res5.0.conv1.norm.running_mean", "res5"),
        ("stem.conv1.norm.weight", "stem.conv1.norm.bias", "stem"),
    ],
)
def test_two_swapped_tensors_of_one_shape_are_found(one: str, other: str, stage: str) -> None:
    arrays = random_arrays("resnet18")
    target = in_detectron2_names(arrays, "resnet18")
    target[one], target[other] = target[other], target[one]
    with pytest.raises(InputError, match=f"differs from the source at {stage} by"):
        forward_difference(arrays, target, ARCHITECTURES["resnet18"], stride_in_1x1=False, path="x")


def test_one_changed_number_is_found() -> None:
    arrays = random_arrays("resnet18")
    target = in_detectron2_names(arrays, "resnet18")
    name = "res5.1.conv2.norm.bias"
    target[name] = target[name].copy()
    target[name][0] += 20.0
    with pytest.raises(InputError, match="differs from the source at res5"):
        forward_difference(arrays, target, ARCHITECTURES["resnet18"], stride_in_1x1=False, path="x")


def test_positive_variances_pass_and_tiny_ones_too() -> None:
    check_numbers({"bn1.running_var": np.array([5.6e-45, 1.0], np.float32)}, path="x")


def test_an_untrained_network_is_called_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "x.pth")
    conversion = convert(tmp_path / "x.pth", tmp_path / "b.pkl")
    assert len(conversion.warnings) == 1
    assert "look like random weights" in conversion.warnings[0]
    assert "20 of 20 convolutions" in conversion.warnings[0]
    assert any(line.startswith("warning: these look like") for line in conversion_lines(conversion))


def test_trained_weights_are_not_called_out() -> None:
    arrays = random_arrays("resnet18")
    assert untrained(arrays) is None


def test_untrained_weights_whose_statistics_moved_are_still_called_out() -> None:
    torch.manual_seed(0)
    state = torchvision.models.resnet18(zero_init_residual=True).state_dict()
    arrays = {n: t.numpy() for n, t in state.items() if t.dim() and not n.startswith("fc.")}
    arrays["bn1.running_mean"] = arrays["bn1.running_mean"] + np.float32(0.5)
    reason = untrained(arrays)
    assert reason is not None and "running means 0" not in reason
