"""Weights into the detector, all of them or none; and a run's own checkpoints."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.standalone.build import build_detector
from moco_det.standalone.checkpoint import last_checkpoint, write
from moco_det.standalone.detector import GeneralizedRCNN
from moco_det.weights.loading import load_initial_weights
from tests.golden.filling import fill
from tests.standalone.conftest import backbone_arrays, write_backbone
from tests.standalone.tiny import tiny_config

PREFIX = "backbone.bottom_up."


def make_model(seed: int = 0, changes: dict[str, str] | None = None) -> GeneralizedRCNN:
    torch.manual_seed(seed)
    return build_detector(tiny_config(changes))


def copy_of(model: GeneralizedRCNN) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_untouched(model: GeneralizedRCNN, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert [name for name in before if not torch.equal(after[name], before[name])] == []


def test_a_backbone_file_fills_the_backbone_exactly_and_nothing_else(backbone_file: Path) -> None:
    model = make_model()
    before = copy_of(model)
    loaded = load_initial_weights(model, str(backbone_file))
    arrays = backbone_arrays()
    assert loaded.tensors == loaded.of == len(arrays) == 20 + 4 * 20  # R18: 20 convolutions
    for name, tensor in model.state_dict().items():
        if name.startswith(PREFIX) and not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(tensor.numpy(), arrays[name.removeprefix(PREFIX)])
        else:
            assert torch.equal(tensor, before[name]), name
    assert loaded.backbone is not None and loaded.backbone.source is not None
    assert loaded.backbone.source["method"] == "moco_v2"


def zoo_pickle(model: GeneralizedRCNN, path: Path) -> Path:
    """The model as detectron2's zoo stores one: pickled arrays, with anchors and pixel numbers."""
    arrays = {n: t.numpy() for n, t in model.state_dict().items() if t.is_floating_point()}
    arrays["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((3, 4), np.float32)
    arrays["pixel_mean"] = np.zeros((3, 1, 1), np.float32)
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo"}
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def test_a_detector_of_detectron2s_model_zoo_loads_as_a_whole(tmp_path: Path) -> None:
    frozen = {"MODEL.RESNETS.NORM": "FrozenBN", "MODEL.FPN.NORM": "''", "MODEL.WEIGHTS": "zoo.pkl"}
    source, model = make_model(1, frozen), make_model(2, frozen)
    loaded = load_initial_weights(model, str(zoo_pickle(source, tmp_path / "model_final_1.pkl")))
    assert loaded.new_layers == () and loaded.backbone is None
    assert "tensors of the whole detector loaded" in loaded.line()
    assert_untouched(model, copy_of(source))


def test_a_zoo_detector_of_other_classes_gives_its_backbone_and_says_so(tmp_path: Path) -> None:
    source = make_model(1, {"MODEL.ROI_HEADS.NUM_CLASSES": "5"})
    fill(source)  # random weights are refused as a backbone
    model = make_model(2)
    before = copy_of(model)
    loaded = load_initial_weights(model, str(zoo_pickle(source, tmp_path / "zoo.pkl")))
    assert loaded.line().startswith("100 of 100 backbone tensors loaded")
    assert "roi_heads.box_predictor.cls_score" in loaded.new_layers
    after, theirs = model.state_dict(), source.state_dict()
    for name, tensor in after.items():
        if name.startswith(PREFIX) and tensor.is_floating_point():
            assert torch.equal(tensor, theirs[name]), name
        else:
            assert torch.equal(tensor, before[name]), name


def test_the_new_layers_are_named(backbone_file: Path) -> None:
    loaded = load_initial_weights(make_model(), str(backbone_file))
    line = loaded.line()
    assert line.startswith(f"100 of 100 backbone tensors loaded from {backbone_file}, ")
    for layer in (
        "backbone.fpn_lateral2.norm",
        "proposal_generator.rpn_head.conv",
        "roi_heads.box_predictor.cls_score",
        "roi_heads.mask_head.predictor",
    ):
        assert layer in line
    # FPN: 4 laterals and 4 outputs with norms; RPN 3; box head 2 + 2; mask head 1 + 2
    assert len(loaded.new_layers) == 16 + 3 + 4 + 3
    assert "26 new layers initialised" in line


def test_no_weights_are_said_to_be_none() -> None:
    model = make_model()
    before = copy_of(model)
    loaded = load_initial_weights(model, "")
    assert "all 100 backbone tensors and 26 new layers are randomly initialised" in loaded.line()
    assert loaded.backbone is None and loaded.path is None
    assert_untouched(model, before)


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    model = make_model()
    before = copy_of(model)
    with pytest.raises(InputError, match=r"gone\.pkl does not exist.*convert-weights"):
        load_initial_weights(model, str(tmp_path / "gone.pkl"))
    with pytest.raises(InputError, match=r"gone\.pth does not exist"):
        load_initial_weights(model, str(tmp_path / "gone.pth"))
    assert_untouched(model, before)


def without_last_stage(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n: a for n, a in arrays.items() if n != "res5.1.conv2.weight"}


def with_nan(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    weight = arrays["res3.0.conv1.weight"].copy()
    weight[0, 0, 0, 0] = np.nan
    return arrays | {"res3.0.conv1.weight": weight}


def with_narrow_layer(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return arrays | {"res5.1.conv2.norm.bias": arrays["res5.1.conv2.norm.bias"][:7]}


@pytest.mark.parametrize("spoil", [without_last_stage, with_nan, with_narrow_layer])
def test_a_spoilt_file_leaves_the_model_as_it_was(
    tmp_path: Path, spoil: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
) -> None:
    path = write_backbone(tmp_path / "spoilt.pkl", spoil(backbone_arrays()))
    model = make_model()
    before = copy_of(model)
    with pytest.raises(InputError, match="spoilt.pkl"):
        load_initial_weights(model, str(path))
    assert_untouched(model, before)


NARROW = {"MODEL.RESNETS.STEM_OUT_CHANNELS": "32", "MODEL.RESNETS.RES2_OUT_CHANNELS": "32"}


def test_a_narrow_backbone_fills_a_narrow_detector(tmp_path: Path) -> None:
    arrays = backbone_arrays("resnet18_w0.5x")
    model = make_model(changes=NARROW)
    loaded = load_initial_weights(model, str(write_backbone(tmp_path / "half.pkl", arrays)))
    assert loaded.tensors == loaded.of == len(arrays) == 100
    state = model.state_dict()
    for name, array in arrays.items():
        np.testing.assert_array_equal(state[PREFIX + name].numpy(), array)


@pytest.mark.parametrize(
    ("weights", "changes", "said"),
    [
        ("resnet18_w0.5x", {}, "STEM_OUT_CHANNELS 32 MODEL.RESNETS.RES2_OUT_CHANNELS 32"),
        ("resnet18", NARROW, "STEM_OUT_CHANNELS 64 MODEL.RESNETS.RES2_OUT_CHANNELS 64"),
        ("resnet34_w0.5x", NARROW, "DEPTH 34"),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_weights_of_another_width_are_refused_with_the_keys_that_fit_them(
    weights: str, changes: dict[str, str], said: str, whole: bool, tmp_path: Path
) -> None:
    if whole:  # the checkpoint of a run
        keys = {key: str(value) for key, value in ARCHITECTURES[weights].keys.items()}
        path = tmp_path / "model_final.pth"
        torch.save({"model": make_model(changes=keys).state_dict()}, path)
    else:
        path = write_backbone(tmp_path / "b.pkl", backbone_arrays(weights))
    model = make_model(changes=changes)
    before = copy_of(model)
    with pytest.raises(InputError) as caught:
        load_initial_weights(model, str(path))
    assert str(caught.value).endswith(f"its ResNet is a {weights}: set MODEL.RESNETS.{said}")
    assert_untouched(model, before)


def test_a_detector_of_other_classes_is_not_said_to_have_another_resnet(tmp_path: Path) -> None:
    other = make_model(changes={"MODEL.ROI_HEADS.NUM_CLASSES": "5"})
    torch.save({"model": other.state_dict()}, tmp_path / "model_final.pth")
    with pytest.raises(InputError, match="correct the heads' widths or NUM_CLASSES"):
        load_initial_weights(make_model(), str(tmp_path / "model_final.pth"))


def test_weights_of_another_depth_are_refused(backbone_file: Path) -> None:
    model = make_model(
        changes={"MODEL.RESNETS.DEPTH": "50", "MODEL.RESNETS.RES2_OUT_CHANNELS": "256"}
    )
    before = copy_of(model)
    with pytest.raises(InputError, match=r"moco\.pkl does not fit this model.*MODEL\.RESNETS"):
        load_initial_weights(model, str(backbone_file))
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.pkl", b""),
        ("page.pth", b"<html>404</html>"),
        ("text.pkl", b"weights"),
        ("e.pth", b""),
    ],
)
def test_a_file_that_is_no_checkpoint_is_bad_input(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    model = make_model()
    before = copy_of(model)
    with pytest.raises(InputError, match=name) as caught:
        load_initial_weights(model, str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert_untouched(model, before)


def test_a_whole_detector_is_loaded_from_its_own_checkpoint(tmp_path: Path) -> None:
    trained = make_model(1)
    fill(trained)
    torch.save({"model": trained.state_dict()}, tmp_path / "model_final.pth")
    model = make_model(2)
    loaded = load_initial_weights(model, str(tmp_path / "model_final.pth"))
    assert_untouched(model, copy_of(trained))
    assert loaded.new_layers == () and "of the whole detector loaded" in loaded.line()


def test_a_detector_of_other_classes_is_refused(tmp_path: Path) -> None:
    torch.save({"model": make_model(1).state_dict()}, tmp_path / "model_final.pth")
    model = make_model(2, {"MODEL.ROI_HEADS.NUM_CLASSES": "5"})
    before = copy_of(model)
    with pytest.raises(InputError, match=r"model_final\.pth.*shape.*NUM_CLASSES"):
        load_initial_weights(model, str(tmp_path / "model_final.pth"))
    assert_untouched(model, before)


def test_a_pretraining_checkpoint_names_the_conversion(tmp_path: Path) -> None:
    pixels = {"format": "RGB", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    encoder = torchvision.models.resnet18().state_dict()
    content = {"format": "moco-det/1", "arch": "resnet18", "encoder": encoder, "input": pixels}
    torch.save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(InputError, match=r"convert-weights .*checkpoint\.pth"):
        load_initial_weights(make_model(), str(tmp_path / "checkpoint.pth"))


def test_the_newest_checkpoint_is_found_and_nothing_temporary_stays(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for i in (1, 3):
        write(tmp_path, f"model_{i:07d}.pth", {"model": {}, "iteration": i})
    found = last_checkpoint(tmp_path)
    assert found is not None and found[0].name == "model_0000003.pth"
    assert found[1]["iteration"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "last_checkpoint",
        "model_0000001.pth",
        "model_0000003.pth",
    ]


def test_without_the_pointer_the_newest_is_still_found(tmp_path: Path) -> None:
    for i in (9, 1, 5):
        path = write(tmp_path, f"model_{i:07d}.pth", {"model": {}, "iteration": i})
        os.utime(path, (1000 + i, 1000 + i))
    (tmp_path / "last_checkpoint").unlink()
    found = last_checkpoint(tmp_path)
    assert found is not None and found[1]["iteration"] == 9


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for i in (1, 3):
        path = write(tmp_path, f"model_{i:07d}.pth", {"model": {}, "iteration": i})
        os.utime(path, (1000 + i, 1000 + i))
    (tmp_path / "model_0000003.pth").write_bytes(content)
    found = last_checkpoint(tmp_path)
    assert found is not None and found[1]["iteration"] == 1
    assert "model_0000003.pth" in caplog.text
    (tmp_path / "model_0000001.pth").write_bytes(content)
    with pytest.raises(InputError, match="none of the 2 checkpoints in .* is whole"):
        last_checkpoint(tmp_path)  # starting anew would overwrite what is left


def test_a_failed_write_leaves_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "model_0000001.pth", {"model": {}, "iteration": 1})

    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(InputError, match="cannot write .*model_0000001.pth: no space"):
        write(tmp_path, "model_0000001.pth", {"model": {}, "iteration": 2})
    monkeypatch.undo()
    found = last_checkpoint(tmp_path)
    assert found is not None and found[1]["iteration"] == 1
