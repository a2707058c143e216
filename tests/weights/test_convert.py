"""Conversion: what is in the files, and what is printed."""

from __future__ import annotations

import filecmp
import json
import pickle
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
import torchvision
from torch import Tensor

from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.resnet.network import ResNet
from moco_det.weights.architectures import STAGES, backbone_tensors
from moco_det.weights.backbone import load_backbone
from moco_det.weights.convert import convert
from moco_det.weights.reading import read_checkpoint
from moco_det.weights.summaries import conversion_lines
from tests.weights.checkpoints import PIXELS


def test_the_backbone_pickle_is_the_contracts(backbone_file: Path, moco_file: Path) -> None:
    with open(backbone_file, "rb") as file:
        content = pickle.load(file)
    assert list(content) == [
        "model",
        "__author__",
        "matching_heuristics",
        "input",
        "source",
        "verified",
    ]
    assert content["__author__"] == "moco_det" and content["matching_heuristics"] is True
    assert content["input"] == PIXELS
    assert content["source"] == {
        "format": "facebookresearch/moco",
        "method": None,
        "arch": "resnet18",
        "sha256": read_checkpoint(moco_file).sha256,
        "file": "checkpoint_0199.pth.tar",
    }
    verified = content["verified"]
    assert list(verified["per_stage"]) == list(STAGES)
    assert verified["max_abs_difference"] == max(verified["per_stage"].values()) < 1e-4
    expected = {t.detectron2: t.shape for t in backbone_tensors(ARCHITECTURES["resnet18"])}
    assert {name: array.shape for name, array in content["model"].items()} == expected
    assert {array.dtype for array in content["model"].values()} == {np.dtype("float32")}


def test_the_pickle_loads_strictly_and_gives_the_sources_features(
    backbone_file: Path, query: OrderedDict[str, Tensor]
) -> None:
    model = ResNet(ARCHITECTURES["resnet18"], norm="BN").eval()
    with open(backbone_file, "rb") as file:
        arrays = pickle.load(file)["model"]
    incompatible = model.load_state_dict(
        {name: torch.from_numpy(array) for name, array in arrays.items()}, strict=False
    )
    assert incompatible.unexpected_keys == []
    assert all(key.endswith("num_batches_tracked") for key in incompatible.missing_keys)
    source = torchvision.models.resnet18()
    source.load_state_dict(query)
    source.eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        pooled = model(images)["res5"].mean(dim=(2, 3))
        torch.testing.assert_close(source.fc(pooled), source(images), rtol=1e-4, atol=1e-4)


def test_own_checkpoints_carry_method_and_pixels(own_file: Path, tmp_path: Path) -> None:
    convert(own_file, tmp_path / "b.pkl")
    backbone = load_backbone(tmp_path / "b.pkl")
    assert backbone.source is not None
    assert backbone.source["method"] == "moco_v2" and backbone.source["format"] == "moco-det/1"
    assert backbone.input == PIXELS


def test_safetensors_carry_the_same(moco_file: Path, backbone_file: Path, tmp_path: Path) -> None:
    convert(moco_file, tmp_path / "b.safetensors")
    with open(backbone_file, "rb") as file:
        content = pickle.load(file)
    with safetensors.safe_open(tmp_path / "b.safetensors", framework="np") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(arrays) == set(content["model"])
    assert all(np.array_equal(arrays[name], a) for name, a in content["model"].items())
    for key in ("input", "source", "verified"):
        assert json.loads(metadata[key]) == content[key]


def test_the_query_encoder_is_the_default_and_the_key_encoder_a_choice(
    moco_file: Path, tmp_path: Path, query: dict[str, Tensor], key: dict[str, Tensor]
) -> None:
    for encoder, expected in ((None, query), ("query", query), ("key", key)):
        conversion = convert(moco_file, tmp_path / "b.pkl", encoder=encoder, overwrite=True)
        model = load_backbone(tmp_path / "b.pkl").model
        assert np.array_equal(model["stem.conv1.weight"], expected["conv1.weight"].numpy())
        assert np.array_equal(
            model["res4.1.conv2.norm.bias"], expected["layer3.1.bn2.bias"].numpy()
        )
        lines = "\n".join(conversion_lines(conversion))
        assert f"encoder       {encoder or 'query (the default; also there: key)'}" in lines


def test_the_report_names_what_a_reader_asks_for(moco_file: Path, tmp_path: Path) -> None:
    lines = conversion_lines(convert(moco_file, tmp_path / "b.pkl"))
    text = "\n".join(lines)
    for part in (
        "facebookresearch/moco (recognised from its keys)",
        "resnet18",
        "100 of 100 backbone tensors",
        "120 of the other encoder",
        "module.encoder_q.fc.weight",
        "argparse.Namespace",
    ):
        assert part in text
    differences = {stage: float(re.search(rf"{stage} (\S+)", text)[1]) for stage in STAGES}
    assert max(differences.values()) < 1e-4
    assert not any(line.startswith("warning") for line in lines)


@pytest.mark.parametrize("suffix", [".pkl", ".safetensors", ".pth"])
def test_the_same_input_gives_the_same_bytes(moco_file: Path, tmp_path: Path, suffix: str) -> None:
    first = convert(moco_file, tmp_path / f"a{suffix}")
    second = convert(moco_file, tmp_path / f"another_name{suffix}")
    assert first.sha256 == second.sha256
    assert filecmp.cmp(tmp_path / f"a{suffix}", second.output, shallow=False)


def test_reading_and_converting_are_imported_without_torch() -> None:
    modules = ", ".join(f"moco_det.weights.{m}" for m in ("backbone", "convert", "summaries"))
    code = f"import sys, {modules}, moco_det.weights.inspection; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.detectron2
def test_detectron2_loads_the_file_and_computes_the_same(
    backbone_file: Path, query: OrderedDict[str, Tensor]
) -> None:
    pytest.importorskip("detectron2.checkpoint")
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone import build_resnet_backbone

    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    model = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    DetectionCheckpointer(model).load(str(backbone_file))
    ours = ResNet(ARCHITECTURES["resnet18"], norm="BN").eval()
    arrays = load_backbone(backbone_file).model
    ours.load_state_dict({n: torch.from_numpy(a) for n, a in arrays.items()}, strict=False)
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(model(images)["res5"], ours(images)["res5"])


def test_a_pre_training_made_here_is_known_again_in_its_backbone(
    own_file: Path, moco_file: Path, tmp_path: Path
) -> None:
    found = []
    for source, target in ((own_file, "a.pkl"), (tmp_path / "a.pkl", "b.safetensors"),
                           (moco_file, "c.pkl")):  # fmt: skip
        convert(source, tmp_path / target)
        found.append((load_backbone(tmp_path / target).source or {}).get("settings"))
    assert found == ["5e77" * 16, "5e77" * 16, None]
