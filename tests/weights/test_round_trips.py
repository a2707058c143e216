"""There and back between the targets, and their bytes."""

from __future__ import annotations

import filecmp
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from moco_det.weights.backbone import load_backbone
from moco_det.weights.convert import convert
from moco_det.weights.reading import read_checkpoint


@pytest.mark.parametrize("middle", [".pkl", ".safetensors"])
def test_there_and_back_loses_no_bit(
    moco_file: Path, tmp_path: Path, query: dict[str, Tensor], middle: str
) -> None:
    convert(moco_file, tmp_path / f"b{middle}")
    convert(tmp_path / f"b{middle}", tmp_path / "back.pth")
    state = torch.load(tmp_path / "back.pth", weights_only=True)
    model = torchvision.models.resnet18()
    model.fc = torch.nn.Identity()
    model.load_state_dict(state, strict=True)
    assert list(state) == [name for name in query if not name.startswith("fc.")]
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, query[name]), name


def test_batch_counters_stay_where_the_target_has_them(moco_file: Path, tmp_path: Path) -> None:
    convert(moco_file, tmp_path / "back.pth", target_format="torchvision")
    state = torch.load(tmp_path / "back.pth", weights_only=True)
    assert state["layer1.0.bn1.num_batches_tracked"].item() == 7


def test_repacking_keeps_the_first_source_and_every_byte(
    backbone_file: Path, tmp_path: Path
) -> None:
    convert(backbone_file, tmp_path / "b.safetensors")
    convert(tmp_path / "b.safetensors", tmp_path / "again.pkl")
    assert filecmp.cmp(tmp_path / "again.pkl", backbone_file, shallow=False)


def test_torchvision_names_in_safetensors_come_back(moco_file: Path, tmp_path: Path) -> None:
    convert(moco_file, tmp_path / "t.safetensors", target_format="timm")
    source = read_checkpoint(tmp_path / "t.safetensors")
    assert source.format == "torchvision" and len(source.counters) == 20


def test_half_precision_is_widened(tmp_path: Path, query: OrderedDict[str, Tensor]) -> None:
    half = {n: t.bfloat16() if t.is_floating_point() else t for n, t in query.items()}
    torch.save(half, tmp_path / "h.pth")
    convert(tmp_path / "h.pth", tmp_path / "b.pkl")
    weight = load_backbone(tmp_path / "b.pkl").model["res2.0.conv1.weight"]
    assert np.array_equal(weight, half["layer1.0.conv1.weight"].float().numpy())
