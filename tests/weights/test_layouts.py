"""Every layout with numbers in it: what is read is what its project wrote, bit for bit.

The golden lists' keys with the numbers of a small network behind them, so that all stay fast.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from moco_det.resnet.architectures import ARCHITECTURES, Architecture
from moco_det.weights.architectures import backbone_tensors
from moco_det.weights.backbone import load_backbone
from moco_det.weights.convert import convert
from moco_det.weights.formats import BY_NAME
from moco_det.weights.reading import read_checkpoint
from tests.weights.checkpoints import random_arrays
from tests.weights.golden_lists import LISTS, caffe_arrays, filled

PLAIN = [name for name, expected in LISTS.items() if not BY_NAME[expected.format].affine]


TINY = Architecture((1, 1, 1, 1), False, res2_out_channels=64)


def tiny(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a ResNet-18 that has one block a stage."""
    return {name: t for name, t in state.items() if not re.match(r"layer\d\.1|fc", name)}


@pytest.mark.parametrize("name", PLAIN)
def test_each_encoder_is_read_bit_for_bit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    query: dict[str, Tensor],
    key: dict[str, Tensor],
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    expected = LISTS[name]
    states = dict(zip(expected.encoders, (tiny(query), tiny(key)), strict=False))
    torch.save(filled(name, states), tmp_path / "x.pth")
    for encoder, state in states.items():
        source = read_checkpoint(tmp_path / "x.pth", encoder=encoder)
        assert (source.format, source.encoder) == (expected.format, encoder)
        assert source.architecture == "tiny" and source.encoders == expected.encoders
        for tensor in backbone_tensors(TINY):
            numbers = state[tensor.torchvision].numpy()
            assert np.array_equal(source.array(tensor.torchvision), numbers), tensor
    assert read_checkpoint(tmp_path / "x.pth").encoder == expected.encoders[0]


def test_an_msra_file_keeps_its_numbers_and_takes_the_bias_into_the_mean(tmp_path: Path) -> None:
    """conv1_b is the one bias that MSRA's file has: (x + b) - m = x - (m - b)."""
    arrays = random_arrays("resnet50")
    blobs = caffe_arrays("caffe2_msra", arrays)
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    conversion = convert(tmp_path / "R-50.pkl", tmp_path / "b.pkl")
    assert (conversion.source.format, conversion.tensors) == ("caffe2-msra", 265)
    backbone = load_backbone(tmp_path / "b.pkl")
    assert backbone.input is not None
    assert backbone.input["format"] == "BGR" and backbone.input["stride_in_1x1"] is True
    for tensor in backbone_tensors(ARCHITECTURES["resnet50"]):
        expected = arrays[tensor.torchvision]
        if tensor.torchvision == "bn1.running_mean":
            expected = expected - np.float32(0.25)
        assert np.array_equal(backbone.model[tensor.detectron2], expected), tensor


def test_a_norm_without_statistics_becomes_one_that_computes_its_scale_and_shift(
    tmp_path: Path,
) -> None:
    """Detectron's convolution with a bias and its affine channel, (x + c) s + b, against a batch
    norm in evaluation."""
    arrays = random_arrays("resnet50")
    blobs = caffe_arrays("caffe2_msra_affine", arrays)
    assert not any("running" in blob or blob.endswith(("_rm", "_riv")) for blob in blobs)
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(blobs, protocol=2))
    source = read_checkpoint(tmp_path / "R-50.pkl")
    x = torch.randn(1, 64, 5, 5, generator=torch.Generator().manual_seed(0))
    mean, variance, scale, shift = (
        torch.from_numpy(source.array(f"layer1.0.bn2.{part}").copy())
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    found = torch.nn.functional.batch_norm(x, mean, variance, scale, shift)
    expected = (x + 0.25) * scale[:, None, None] + shift[:, None, None]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
