"""What the engines load, and what they are told when it is no backbone."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.weights.architectures import backbone_tensors
from moco_det.weights.backbone import load_backbone
from moco_det.weights.convert import convert


def arrays(query: dict[str, Tensor]) -> dict[str, np.ndarray]:
    tensors = backbone_tensors(ARCHITECTURES["resnet18"])
    return {t.detectron2: query[t.torchvision].numpy() for t in tensors}


def test_pickle_and_safetensors_load_alike(backbone_file: Path, tmp_path: Path) -> None:
    convert(backbone_file, tmp_path / "b.safetensors")
    one, other = load_backbone(backbone_file), load_backbone(tmp_path / "b.safetensors")
    assert one.architecture == other.architecture == "resnet18"
    assert one.input == other.input and one.source == other.source
    assert one.verified == other.verified and one.verified is not None
    assert one.sha256 != other.sha256 and len(one.sha256) == 64
    assert list(one.model) == list(other.model)
    assert all(np.array_equal(array, other.model[name]) for name, array in one.model.items())


def test_the_arrays_can_be_trained_on(backbone_file: Path) -> None:
    for array in load_backbone(backbone_file).model.values():
        assert array.flags.writeable and array.flags.owndata and array.dtype == np.float32


@pytest.mark.parametrize("prefix", ["", "backbone.bottom_up.", "backbone."])
def test_the_backbone_of_a_detectron2_file_is_found(
    tmp_path: Path, query: dict[str, Tensor], prefix: str
) -> None:
    model = {prefix + name: array for name, array in arrays(query).items()}
    if prefix == "backbone.":  # a C4 detector keeps its last stage in the head
        model = {n.replace("backbone.res5", "roi_heads.res5"): a for n, a in model.items()}
    model["proposal_generator.rpn_head.conv.bias"] = np.zeros(4, np.float32)
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": model, "__author__": "Detectron2 Model Zoo"}))
    backbone = load_backbone(path)
    assert backbone.input is None and backbone.source is None and backbone.verified is None
    assert np.array_equal(
        backbone.model["res5.1.conv2.weight"], query["layer4.1.conv2.weight"].numpy()
    )


def test_a_detector_saved_by_torch_is_found_too(tmp_path: Path, query: dict[str, Tensor]) -> None:
    model = {f"backbone.bottom_up.{n}": torch.from_numpy(a) for n, a in arrays(query).items()}
    torch.save({"model": model, "iteration": 9}, tmp_path / "model_final.pth")
    assert len(load_backbone(tmp_path / "model_final.pth").model) == 100


def test_a_file_of_mocos_own_converter_is_rgb_and_its_stray_head_is_left_out(
    tmp_path: Path, query: dict[str, Tensor]
) -> None:
    model = dict(arrays(query))
    model["stem.fc.weight"] = query["fc.weight"].numpy()
    model["stem.conv1.norm.num_batches_tracked"] = np.array(7)
    path = tmp_path / "moco.pkl"
    content = {"model": model, "__author__": "MOCO", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))
    backbone = load_backbone(path)
    assert backbone.input is not None and backbone.input["format"] == "RGB"
    assert len(backbone.model) == 100 and "stem.fc.weight" not in backbone.model


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"moco.pkl does not exist: .*convert-weights CHECKPO"):
        load_backbone(tmp_path / "moco.pkl")


def test_an_unconverted_checkpoint_names_the_command(moco_file: Path) -> None:
    with pytest.raises(InputError, match="is a facebookresearch/moco checkpoint, not a backbone"):
        load_backbone(moco_file)


@pytest.mark.parametrize("content", [{"model": {}}, {}, [], {"model": {"w": np.zeros(2)}}])
def test_a_pickle_without_a_backbone_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "b.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="b.pkl is of no known format"):
        load_backbone(path)


def test_an_empty_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b.pkl").touch()
    with pytest.raises(InputError, match="is empty"):
        load_backbone(tmp_path / "b.pkl")
    with pytest.raises(InputError, match="is a directory"):
        load_backbone(tmp_path)


def test_a_backbone_with_a_hole_never_loads(tmp_path: Path, query: dict[str, Tensor]) -> None:
    model = arrays(query)
    del model["res4.0.shortcut.norm.weight"]
    path = tmp_path / "b.pkl"
    path.write_bytes(pickle.dumps({"model": model}))
    with pytest.raises(InputError, match="lacks 1 of 100"):
        load_backbone(path)


def test_numbers_that_are_not_finite_never_load(tmp_path: Path, query: dict[str, Tensor]) -> None:
    model = {**arrays(query), "res3.0.conv1.norm.bias": np.full(128, np.nan, np.float32)}
    path = tmp_path / "b.pkl"
    path.write_bytes(pickle.dumps({"model": model}))
    with pytest.raises(InputError, match="res3.0.conv1.norm.bias holds 128 values"):
        load_backbone(path)
