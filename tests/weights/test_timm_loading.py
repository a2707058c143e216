"""A converted network of timm into a detector: only the one that it was converted for."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("timm")

from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.resnet.network import ResNet
from moco_det.results.matched import INPUT_KEYS, compare_configs
from moco_det.runs.suites.matrix import SuiteArm, check_architecture
from moco_det.runs.suites.suite import SuiteSetting
from moco_det.timm_backbones.network import TimmBackbone
from moco_det.weights.architectures import detector_keys
from moco_det.weights.backbone import load_backbone
from moco_det.weights.convert import convert
from moco_det.weights.loading import backbone_names, load_initial_weights, new_layers
from tests.weights.timm_files import save, trained

FED = {
    "MODEL.PIXEL_MEAN": [127.5, 127.5, 127.5],
    "MODEL.PIXEL_STD": [127.5, 127.5, 127.5],
    "INPUT.FORMAT": "RGB",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
}


def detector(bottom_up: nn.Module) -> nn.Module:
    """The parts of a detector that weights are told apart by."""
    below = nn.ModuleDict({"bottom_up": bottom_up, "fpn_output2": nn.Conv2d(1, 1, 1)})
    return nn.ModuleDict({"backbone": below, "roi_heads": nn.ModuleDict({"head": nn.Linear(1, 1)})})


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timm")
    file = save({"arch": "test_convnext", "model": trained("test_convnext")}, folder / "a.pth")
    return convert(file, folder / "a.pkl").output


def refusal(model: nn.Module, file: Path, **fed: object) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_initial_weights(model, str(file), fed=FED | fed)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_tensor_of_the_network_is_filled_and_the_others_are_named(small_file: Path) -> None:
    model = detector(TimmBackbone("test_convnext"))
    head = model.state_dict()["roi_heads.head.weight"].clone()
    loaded = load_initial_weights(model, str(small_file), fed=FED)
    given, names = load_backbone(small_file).model, backbone_names(model)
    assert list(names) == list(given) and len(names) == 97
    assert all(torch.equal(tensor, torch.from_numpy(given[n])) for n, tensor in names.items())
    assert loaded.new_layers == new_layers(model) == ("backbone.fpn_output2", "roi_heads.head")
    assert loaded.line().startswith("97 of 97 backbone tensors loaded from")
    assert torch.equal(model.state_dict()["roi_heads.head.weight"], head)


def test_batch_counters_are_no_tensors_of_the_network(tmp_path: Path) -> None:
    state = trained("test_efficientnet")
    file = save({"arch": "test_efficientnet", "model": state}, tmp_path / "e.pth")
    convert(file, tmp_path / "e.pkl")
    model = detector(TimmBackbone("test_efficientnet"))
    loaded = load_initial_weights(model, str(tmp_path / "e.pkl"))
    assert loaded.tensors == loaded.of == 68
    filled = backbone_names(model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in filled.items())


def test_a_file_of_another_network_names_the_key_to_set(
    small_file: Path, backbone_file: Path, tmp_path: Path
) -> None:
    assert "is a test_convnext, and the detector's backbone is a test_convnext2: set " in (
        line := refusal(detector(TimmBackbone("test_convnext2")), small_file)
    )
    assert line.endswith("set MODEL.TIMM.NAME test_convnext")
    line = refusal(detector(ResNet(ARCHITECTURES["resnet18"])), small_file)
    keys = "MODEL.BACKBONE.NAME build_timm_fpn_backbone MODEL.TIMM.NAME test_convnext"
    assert line.endswith(f"is a ResNet: set {keys}")
    line = refusal(detector(TimmBackbone("test_convnext")), backbone_file)
    assert "is a resnet18, and the detector's backbone is a test_convnext: set " in line
    assert "MODEL.BACKBONE.NAME build_resnet_fpn_backbone MODEL.TIMM.NAME '' " in line
    assert "MODEL.RESNETS.DEPTH 18" in line
    content = pickle.loads(small_file.read_bytes())
    twin = tmp_path / "twin.pkl"  # of the same shapes, as tf_efficientnet_b0 is to efficientnet_b0
    twin.write_bytes(pickle.dumps({**content, "architecture": "tf_test_convnext"}))
    line = refusal(detector(TimmBackbone("test_convnext")), twin)
    assert line.endswith("set MODEL.TIMM.NAME tf_test_convnext")


def test_mean_std_and_channel_order_are_the_files(small_file: Path) -> None:
    model = detector(TimmBackbone("test_convnext"))
    line = refusal(model, small_file, **{"MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53]})
    assert "MODEL.PIXEL_MEAN '[127.5, 127.5, 127.5]'" in line
    assert "INPUT.FORMAT is BGR" in refusal(model, small_file, **{"INPUT.FORMAT": "BGR"})
    stride = {"MODEL.RESNETS.STRIDE_IN_1X1": True}  # a ResNet's alone
    load_initial_weights(model, str(small_file), fed=FED | stride)
    given = load_backbone(small_file).input
    text = "MODEL: {PIXEL_MEAN: [127.5, 127.5, 127.5], WEIGHTS: %s}\nINPUT: {FORMAT: RGB}\n"
    text += "MODEL.PIXEL_STD: [127.5, 127.5, 127.5]\n"
    arms = {"a": text % "a.pkl", "random": text % "''"}
    assert compare_configs(arms, {"a": given, "random": None}).ok
    assert SuiteArm("a", small_file, "0", dict(given or {})).keys() == {
        key: value for key, value in FED.items() if INPUT_KEYS[key] != "stride_in_1x1"
    }


def test_a_suites_arm_of_another_network_is_refused_before_the_first_run() -> None:
    resnet = SuiteArm("moco", Path("moco.pkl"), "a" * 64, {}, "resnet50")
    tiny = SuiteArm("dino", Path("dino.pkl"), "b" * 64, {}, "convnext_tiny")
    setting = SuiteSetting("tiny", detector_keys("convnext_tiny"))
    check_architecture(setting, tiny)
    check_architecture(setting, SuiteArm("random", None, None, {}))
    with pytest.raises(InputError, match="arm moco is a resnet50, but .* has a convnext_tiny of"):
        check_architecture(setting, resnet)
    with pytest.raises(InputError, match="add --set MODEL.TIMM.NAME convnext_tiny, or give"):
        check_architecture(SuiteSetting("s", detector_keys("convnext_small")), tiny)
    with pytest.raises(InputError, match="--set MODEL.BACKBONE.NAME build_timm_fpn_backbone --set"):
        check_architecture(SuiteSetting("r", {}), tiny)


@pytest.mark.detectron2
def test_detectron2s_own_checkpointer_fills_the_network(small_file: Path) -> None:
    checkpoint = pytest.importorskip("detectron2.checkpoint")
    model = detector(TimmBackbone("test_convnext"))
    checkpoint.DetectionCheckpointer(model).load(str(small_file))
    given = load_backbone(small_file).model
    filled = backbone_names(model)
    assert all(torch.equal(filled[name], torch.from_numpy(array)) for name, array in given.items())
