"""What of a timm network is trained: frozen stages and norms, rates and decay of its layers."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from moco_det.settings.optimizers import parameter_groups
from moco_det.timm_backbones.network import TimmBackbone

# where each part of a network ends: what lies before the stages, then each stage
ENDS = {
    "test_convnext": ["stem.1", "stages.0.blocks.0", "stages.1.blocks.1", "stages.2.blocks.3"],
    "regnety_002": ["stem.bn", "s1.b1", "s2.b1", "s3.b4"],
    "efficientnet_b0": ["blocks.0.0", "blocks.1.1", "blocks.2.1", "blocks.4.2"],
    "swin_tiny_patch4_window7_224": ["patch_embed.norm", "layers.0.blocks.1"],
    "vit_tiny_patch16_224": ["patch_embed", "blocks.2", "blocks.5", "blocks.8"],
}


@pytest.mark.parametrize("name", ENDS)
def test_freeze_at_freezes_the_parts_up_to_a_stage_and_none_behind(name: str) -> None:
    for parts, end in enumerate(ENDS[name], 1):
        backbone = TimmBackbone(name, freeze_at=parts)
        named = list(backbone.named_parameters())
        frozen = [path for path, p in named if not p.requires_grad]
        assert frozen == [path for path, _ in named][: len(frozen)]
        assert frozen[-1].startswith(f"body.{end}")
        assert len(frozen) < len(named)


def test_freeze_at_5_freezes_the_whole_network() -> None:
    backbone = TimmBackbone("test_convnext", freeze_at=5)
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(module.training for module in backbone.network.modules())


def buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def test_a_frozen_stage_keeps_its_statistics_and_its_drop_path_off_in_training() -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone("test_efficientnet", drop_path=0.5, freeze_at=4).train()
    before, image = buffers(backbone), torch.randn(2, 3, 64, 64)
    one, two = backbone(image), backbone(image)
    changed = {
        n.split(".")[2] for n, b in buffers(backbone).items() if not torch.equal(b, before[n])
    }
    assert changed == {"4"}  # body.blocks.4 is the stage of stride 32, with norms that activate too
    for stage in ("res2", "res3", "res4"):
        assert torch.equal(one[stage], two[stage]) and not one[stage].requires_grad
    assert one["res5"].requires_grad
    backbone.eval()
    backbone.train()
    assert not backbone.get_submodule("body.blocks.3").training
    assert backbone.get_submodule("body.blocks.4").training


def test_frozen_norms_are_constants_in_training_and_the_rest_learns() -> None:
    backbone = TimmBackbone("test_efficientnet", norm="FrozenBN")
    before = buffers(backbone)
    sum(feature.sum() for feature in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in backbone.named_buffers())
    norms = {f"{path}." for path, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert len(norms) == 12
    for name, parameter in backbone.named_parameters():
        in_norm = any(name.startswith(path) for path in norms)
        assert parameter.requires_grad == (parameter.grad is not None) == (not in_norm), name


def test_synchronised_norms_have_the_same_names_and_in_one_process_the_same_numbers() -> None:
    torch.manual_seed(0)
    plain = TimmBackbone("test_efficientnet")
    synced = TimmBackbone("test_efficientnet", norm="SyncBN")
    synced.load_state_dict(plain.state_dict())
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in synced.modules()) == 12
    assert list(synced.state_dict()) == list(plain.state_dict())
    image = torch.randn(2, 3, 64, 64)
    for one, two in zip(plain(image).values(), synced(image).values(), strict=True):
        torch.testing.assert_close(one, two)


def settings_of(module: nn.Module, **changes: float | None) -> dict[str, tuple[float, float]]:
    """{parameter: (rate, decay)}."""
    keys: dict[str, float | None] = {"weight_decay_norm": 0.0, "weight_decay_bias": None}
    groups = parameter_groups(
        module,
        base_lr=1.0,
        weight_decay=0.05,
        bias_lr_factor=1.0,
        **(keys | {"layer_decay": 0.7} | changes),  # type: ignore[arg-type]
    )
    names = {id(p): name for name, p in module.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


class Detector(nn.Module):
    def __init__(self, name: str, **keys: int) -> None:
        super().__init__()
        self.bottom_up = TimmBackbone(name, **keys)  # type: ignore[arg-type]
        self.head = nn.Linear(2, 2)


@pytest.mark.parametrize("name", ENDS)
def test_rates_and_decay_are_timms_own_with_the_detector_for_its_classifier(name: str) -> None:
    with torch.device("meta"):
        detector, whole = Detector(name), timm.create_model(name)
    kept = whole.no_weight_decay() if hasattr(whole, "no_weight_decay") else ()
    names = {id(p): f"bottom_up.body.{name}" for name, p in whole.named_parameters()}
    theirs = {
        names[id(p)]: (pytest.approx(group["lr_scale"]), group["weight_decay"])
        for group in param_groups_layer_decay(whole, 0.05, kept, layer_decay=0.7)
        for p in group["params"]
    }
    ours = settings_of(detector)
    assert ours.pop("head.weight") == (1.0, 0.05) and ours.pop("head.bias") == (1.0, 0.0)
    assert ours == {path: theirs[path] for path in ours}
    assert len(ours) == len(list(detector.bottom_up.parameters())) and len(set(ours.values())) > 8


def test_detectron2s_keys_of_norms_and_biases_go_before_timms_rule() -> None:
    with torch.device("meta"):
        detector = Detector("test_convnext", freeze_at=1)
    stage = "bottom_up.body.stages.1.blocks.0"
    plain = settings_of(detector, layer_decay=1.0)
    assert {rate for rate, _ in plain.values()} == {1.0}
    assert not any(path.startswith("bottom_up.body.stem") for path in plain)  # frozen
    keys = settings_of(detector, weight_decay_norm=0.01, weight_decay_bias=0.02, layer_decay=1.0)
    for name, before, after in (
        ("mlp.fc1.weight", 0.05, 0.05),
        ("mlp.fc1.bias", 0.0, 0.02),
        ("norm.weight", 0.0, 0.01),
        ("gamma", 0.0, 0.0),  # LayerScale
    ):
        assert (plain[f"{stage}.{name}"][1], keys[f"{stage}.{name}"][1]) == (before, after), name


def test_a_copied_detector_keeps_its_own_stages_frozen() -> None:
    backbone = TimmBackbone("test_efficientnet", freeze_at=2)
    other = copy.deepcopy(backbone).train()
    assert not other.get_submodule("body.blocks.1").training
    assert not any(one is two for one in backbone.constant for two in other.constant)
