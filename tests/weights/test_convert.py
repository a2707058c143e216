"""Conversion: contents of the files, proofs that fail, round trips, determinism."""

from __future__ import annotations

import filecmp
import json
import math
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
import torchvision
from torch import Tensor

from moco_det.errors import InputError
from moco_det.resnet import ARCHITECTURES, ResNet
from moco_det.weights import convert, load_backbone, read_checkpoint
from moco_det.weights.architectures import GEOMETRIES, STAGES, backbone_tensors
from moco_det.weights.proof import check_numbers, forward_difference, untrained

PIXELS = {
    "format": "RGB",
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
    "stride_in_1x1": False,
}


def random_arrays(architecture: str) -> dict[str, np.ndarray]:
    """Trained-looking arrays under torchvision's names."""
    generator = np.random.default_rng(5)
    arrays = {}
    for tensor in backbone_tensors(GEOMETRIES[architecture]):
        noise = generator.standard_normal(tensor.shape, dtype=np.float32)
        if tensor.torchvision.endswith("running_var"):
            noise = np.abs(noise) + np.float32(0.5)
        elif noise.ndim == 4:
            noise *= np.float32(math.sqrt(1.2 / noise[0].size))
        elif tensor.torchvision.endswith("weight"):
            noise = np.float32(0.6) + np.float32(0.1) * noise
        arrays[tensor.torchvision] = noise
    return arrays


def in_detectron2_names(arrays: dict[str, np.ndarray], architecture: str) -> dict[str, np.ndarray]:
    tensors = backbone_tensors(GEOMETRIES[architecture])
    return {t.detectron2: arrays[t.torchvision] for t in tensors}


def nothing_but(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


# What is written ------------------------------------------------------------------------------


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
    expected = {t.detectron2: t.shape for t in backbone_tensors(GEOMETRIES["resnet18"])}
    assert {name: array.shape for name, array in content["model"].items()} == expected
    assert {array.dtype for array in content["model"].values()} == {np.dtype("float32")}


def test_the_pickle_loads_strictly_and_gives_the_sources_features(
    backbone_file: Path, query: OrderedDict[str, Tensor]
) -> None:
    model = ResNet.from_architecture(ARCHITECTURES["resnet18"], norm="BN").eval()
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
        conversion = convert(moco_file, tmp_path / "b.pkl", encoder=encoder)
        model = load_backbone(tmp_path / "b.pkl").model
        assert np.array_equal(model["stem.conv1.weight"], expected["conv1.weight"].numpy())
        assert np.array_equal(
            model["res4.1.conv2.norm.bias"], expected["layer3.1.bn2.bias"].numpy()
        )
        lines = "\n".join(conversion.lines())
        assert f"encoder       {encoder or 'query (the default; also there: key)'}" in lines


def test_the_report_names_what_a_reader_asks_for(moco_file: Path, tmp_path: Path) -> None:
    lines = convert(moco_file, tmp_path / "b.pkl").lines()
    text = "\n".join(lines)
    for part in (
        "facebookresearch/moco (recognised from its keys)",
        "resnet18",
        "100 of 100 backbone tensors",
        "120 of the other encoder",
        "module.encoder_q.fc.weight",
        "argparse.Namespace",
        "stem 0.0e+00",
        "res5 ",
    ):
        assert part in text
    assert not any(line.startswith("warning") for line in lines)


@pytest.mark.parametrize("suffix", [".pkl", ".safetensors", ".pth"])
def test_the_same_input_gives_the_same_bytes(moco_file: Path, tmp_path: Path, suffix: str) -> None:
    first = convert(moco_file, tmp_path / f"a{suffix}")
    second = convert(moco_file, tmp_path / f"another_name{suffix}")
    assert first.sha256 == second.sha256
    assert filecmp.cmp(tmp_path / f"a{suffix}", second.output, shallow=False)


# Round trips ----------------------------------------------------------------------------------


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


# Proofs that fail -----------------------------------------------------------------------------


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
    with pytest.raises(InputError, match="bn1.weight holds int32"):
        convert(tmp_path / "x.pth", tmp_path / "b.pkl")


@pytest.mark.parametrize("architecture", ["resnet18", "resnext50_32x4d"])
def test_both_networks_agree_at_every_stage(architecture: str) -> None:
    arrays = random_arrays(architecture)
    target = in_detectron2_names(arrays, architecture)
    difference = forward_difference(
        arrays, target, architecture=architecture, stride_in_1x1=False, path="x"
    )
    assert list(difference) == list(STAGES) and max(difference.values()) < 1e-3


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
        forward_difference(arrays, target, architecture="resnet18", stride_in_1x1=False, path="x")


def test_one_changed_number_is_found() -> None:
    arrays = random_arrays("resnet18")
    target = in_detectron2_names(arrays, "resnet18")
    name = "res5.1.conv2.norm.bias"
    target[name] = target[name].copy()
    target[name][0] += 20.0
    with pytest.raises(InputError, match="differs from the source at res5"):
        forward_difference(arrays, target, architecture="resnet18", stride_in_1x1=False, path="x")


def test_positive_variances_pass_and_tiny_ones_too() -> None:
    check_numbers({"bn1.running_var": np.array([5.6e-45, 1.0], np.float32)}, path="x")


# Random-looking weights -----------------------------------------------------------------------


def test_an_untrained_network_is_called_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "x.pth")
    conversion = convert(tmp_path / "x.pth", tmp_path / "b.pkl")
    assert len(conversion.warnings) == 1
    assert "look like random weights" in conversion.warnings[0]
    assert "20 of 20 convolutions" in conversion.warnings[0]
    assert any(line.startswith("warning: these look like") for line in conversion.lines())


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


# Pixels and stride ----------------------------------------------------------------------------


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
    kinds = {"architecture": "resnet50", "path": "x"}
    other = forward_difference(arrays, target, stride_in_1x1=True, **kinds)
    assert max(other.values()) < 1e-3
    with torch.device("meta"):
        bottleneck = ResNet.from_architecture(ARCHITECTURES["resnet50"], stride_in_1x1=True)
    assert bottleneck.get_submodule("res3.0.conv1").stride == (2, 2)


# Outputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("b.onnx", None, "a backbone file ends with .pkl or .safetensors or .pth"),
        ("b", None, "ends with"),
        ("b.pkl", "torchvision", "a torchvision file ends with"),
        ("b.pth", "detectron2", "a detectron2 file ends with"),
        ("b.pkl", "onnx", "unknown target 'onnx'"),
        ("nowhere/b.pkl", None, "there is no folder"),
    ],
)
def test_a_wrong_output_is_one_clear_line(
    moco_file: Path, tmp_path: Path, name: str, target: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        convert(moco_file, tmp_path / name, target_format=target)
    assert nothing_but(tmp_path)


def test_a_directory_as_output_is_refused(moco_file: Path, tmp_path: Path) -> None:
    (tmp_path / "b.pkl").mkdir()
    with pytest.raises(InputError, match="is a directory"):
        convert(moco_file, tmp_path / "b.pkl")
    assert nothing_but(tmp_path, "b.pkl")


def test_the_input_is_never_overwritten(tmp_path: Path, torchvision_file: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(torchvision_file.read_bytes())
    with pytest.raises(InputError, match="is the input itself"):
        convert(path, path)
    assert path.read_bytes() == torchvision_file.read_bytes()


def test_a_write_that_breaks_leaves_the_old_file(
    torchvision_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b.pkl").write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("moco_det.weights.writing.os.fsync", full)
    with pytest.raises(InputError, match="b.pkl cannot be written: No space left"):
        convert(torchvision_file, tmp_path / "b.pkl")
    assert (tmp_path / "b.pkl").read_bytes() == b"old" and nothing_but(tmp_path, "b.pkl")


def test_a_file_that_reads_back_otherwise_never_gets_its_name(
    torchvision_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moco_det.weights import convert as room
    from moco_det.weights.writing import write_pickle

    def wrong(file: Any, content: dict[str, Any]) -> None:
        model = dict(content["model"])
        model["res3.1.conv1.norm.bias"] = model["res3.1.conv1.norm.bias"] + np.float32(1)
        write_pickle(file, {**content, "model": model})

    monkeypatch.setattr(sys.modules[room.__module__], "write_pickle", wrong)
    with pytest.raises(InputError, match="layer2.1.bn1.bias was written wrongly"):
        convert(torchvision_file, tmp_path / "b.pkl")
    assert nothing_but(tmp_path)


def test_importing_the_room_does_not_import_torch() -> None:
    code = "import sys, moco_det.weights; print('torch' in sys.modules)"
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
    ours = ResNet.from_architecture(ARCHITECTURES["resnet18"], norm="BN").eval()
    arrays = load_backbone(backbone_file).model
    ours.load_state_dict({n: torch.from_numpy(a) for n, a in arrays.items()}, strict=False)
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(model(images)["res5"], ours(images)["res5"])
