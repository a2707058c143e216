"""Channel order, pixel scale and stride placement: stated, known or refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.resnet.network import ResNet
from moco_det.weights.backbone import load_backbone
from moco_det.weights.convert import convert
from moco_det.weights.proof import forward_difference
from tests.weights.checkpoints import PIXELS, in_detectron2_names, random_arrays


def test_a_detectron2_file_without_its_pixels_is_not_guessed(tmp_path: Path) -> None:
    model = in_detectron2_names(random_arrays("resnet18"), "resnet18")
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"model": model, "__author__": "Detectron2 Model Zoo"}))
    with pytest.raises(InputError, match="channel order.*--from detectron2-rgb"):
        convert(path, tmp_path / "b.pkl")
    convert(path, tmp_path / "b.pkl", source_format="detectron2-rgb")
    assert load_backbone(tmp_path / "b.pkl").input == PIXELS


def test_an_msra_network_keeps_bgr_and_its_stride(tmp_path: Path) -> None:
    model = in_detectron2_names(random_arrays("resnet50"), "resnet50")
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"model": model}))
    conversion = convert(path, tmp_path / "b.pkl", source_format="detectron2-msra")
    assert conversion.tensors == 265
    pixels = load_backbone(tmp_path / "b.pkl").input
    assert pixels == {
        "format": "BGR",
        "mean": [103.53, 116.28, 123.675],
        "std": [1.0, 1.0, 1.0],
        "stride_in_1x1": True,
    }
    with pytest.raises(InputError, match="network for BGR images with the stride in 1x1"):
        convert(tmp_path / "b.pkl", tmp_path / "b.pth")


def test_the_stride_of_the_proof_matters() -> None:
    arrays = random_arrays("resnet50")
    target = in_detectron2_names(arrays, "resnet50")
    shape = ARCHITECTURES["resnet50"]
    other = forward_difference(arrays, target, shape, stride_in_1x1=True, path="x")
    assert max(other.values()) < 1e-3
    with torch.device("meta"):
        bottleneck = ResNet(ARCHITECTURES["resnet50"], stride_in_1x1=True)
    assert bottleneck.get_submodule("res3.0.conv1").stride == (2, 2)
