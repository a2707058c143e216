"""Which format a file is taken for, and the refusals with their way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moco_det.foundation.errors import InputError
from moco_det.weights.reading import read_checkpoint


def save(path: Path, value: object) -> Path:
    import torch

    torch.save(value, path)
    return path


def test_two_possible_encoders_are_an_error_unless_one_is_named(
    tmp_path: Path, query: dict[str, Any]
) -> None:
    both = {**query, **{f"encoder_q.{n}": t for n, t in query.items()}}
    path = save(tmp_path / "both.pth", both)
    with pytest.raises(InputError, match="2 ResNets.*--prefix ''`, or --prefix encoder_q"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("prefix", "format_"),
    [
        ("_orig_mod.", "torchvision"),
        ("module._orig_mod.", "torchvision"),
        ("_orig_mod.module.encoder_q.", "facebookresearch/moco"),
        ("module.encoder_q._orig_mod.", "facebookresearch/moco"),
    ],
)
def test_a_compiled_modules_names_are_read_as_the_modules(
    tmp_path: Path, query: dict[str, Any], prefix: str, format_: str
) -> None:
    path = save(tmp_path / "x.pth", {"state_dict": {f"{prefix}{n}": t for n, t in query.items()}})
    assert read_checkpoint(path).format == format_


def test_a_name_with_and_without_the_compilers_wrapper_is_an_error(
    tmp_path: Path, query: dict[str, Any]
) -> None:
    path = save(tmp_path / "x.pth", {**query, "_orig_mod.conv1.weight": query["conv1.weight"]})
    with pytest.raises(InputError, match="_orig_mod.conv1.weight"):
        read_checkpoint(path)


def test_forcing_a_format_that_does_not_fit_says_what_was_found(torchvision_file: Path) -> None:
    with pytest.raises(InputError, match="not a lightly checkpoint: found conv1.weight"):
        read_checkpoint(torchvision_file, source_format="lightly")


def test_an_unknown_format_name_lists_the_known(torchvision_file: Path) -> None:
    with pytest.raises(InputError, match="unknown format 'moco'.*facebookresearch/moco"):
        read_checkpoint(torchvision_file, source_format="moco")


def test_timm_is_read_when_named(torchvision_file: Path) -> None:
    source = read_checkpoint(torchvision_file, source_format="timm")
    assert (source.format, source.forced, source.architecture) == ("timm", True, "resnet18")


def test_a_tensor_that_nobody_claims_is_an_error(tmp_path: Path, query: dict[str, Any]) -> None:
    path = save(tmp_path / "x.pth", {**query, "layer1.0.gate.weight": query["bn1.weight"]})
    with pytest.raises(InputError, match="1 tensors that torchvision does not have: layer1.0.gate"):
        read_checkpoint(path)


def test_a_backbone_with_a_hole_is_an_error(tmp_path: Path, query: dict[str, Any]) -> None:
    path = save(tmp_path / "x.pth", {n: t for n, t in query.items() if n != "layer2.0.bn1.bias"})
    with pytest.raises(InputError, match="lacks 1 of 100 backbone tensors: layer2.0.bn1.bias"):
        read_checkpoint(path)


@pytest.mark.parametrize("prefix", ["", "module.encoder_q."])
def test_a_backbone_without_its_first_tensor_says_which(
    tmp_path: Path, query: dict[str, Any], prefix: str
) -> None:
    """The start is what formats are recognised by: no format is found, but the cause is named."""
    state = {prefix + name: tensor for name, tensor in query.items()}
    for instead in (None, state[f"{prefix}conv1.weight"].to_sparse(), "text"):
        state[f"{prefix}conv1.weight"] = instead
        with pytest.raises(InputError, match="it lacks a plain tensor for conv1.weight; known"):
            read_checkpoint(save(tmp_path / "x.pth", {"state_dict": state}))


def test_a_tensor_under_a_number_is_left_over_like_any(
    tmp_path: Path, query: dict[str, Any]
) -> None:
    path = save(tmp_path / "x.pth", {**query, 5: query["bn1.weight"]})
    with pytest.raises(InputError, match=r"1 tensors that torchvision does not have: \[5\]"):
        read_checkpoint(path)


def test_two_names_for_one_tensor_are_an_error(tmp_path: Path, query: dict[str, Any]) -> None:
    path = save(tmp_path / "x.pth", {**query, "module.bn1.weight": query["bn1.weight"]})
    with pytest.raises(InputError, match="module.bn1.weight names a tensor that another"):
        read_checkpoint(path)


def test_a_newer_format_of_ours_asks_for_an_update(tmp_path: Path, query: dict[str, Any]) -> None:
    value = {"format": "moco-det/2", "encoder": {"bn1.weight": query["bn1.weight"]}}
    path = save(tmp_path / "x.pth", value)
    with pytest.raises(InputError, match="moco-det/2, which a newer version wrote"):
        read_checkpoint(path)


def test_the_key_encoder_of_a_file_with_one_is_an_error(torchvision_file: Path) -> None:
    with pytest.raises(InputError, match="holds the query encoder only"):
        read_checkpoint(torchvision_file, encoder="key")


def test_an_encoder_of_the_format_that_the_file_lacks_is_not_offered(
    tmp_path: Path, query: dict[str, Any]
) -> None:
    """mmselfsup's NPID has no key encoder, its MoCo has one: the file decides, not the row."""
    state = {f"backbone.{n}": t for n, t in query.items() if not n.startswith("fc.")}
    path = save(
        tmp_path / "x.pth",
        {"state_dict": {**state, "memory_bank.feature": state["backbone.bn1.bias"]}},
    )
    assert read_checkpoint(path).encoders == ("query",)
    with pytest.raises(InputError, match="this openselfsup file holds the query encoder only"):
        read_checkpoint(path, encoder="key")


VARIANTS = {
    "deep stem": ("conv1.0.weight", "deep stem of three 3x3"),
    "channel attention": ("layer1.0.se.fc1.weight", "channel attention"),
    "split kernels": ("layer1.0.conv2.paths.0.weight", "selective or split kernels"),
    "antialiased pooling": ("layer2.0.aa.filt", "antialiased pooling"),
    "average-pooled shortcut": ("layer2.0.downsample.2.weight", "average-pooled shortcut"),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("prefix", ["", "module.encoder_q."])
def test_a_resnet_that_detectors_do_not_have_is_called_by_its_name(
    tmp_path: Path, query: dict[str, Any], name: str, prefix: str
) -> None:
    key, why = VARIANTS[name]
    state = {f"{prefix}{n}": t for n, t in {**query, key: query["bn1.weight"]}.items()}
    with pytest.raises(InputError, match=f"unsupported architecture: .*{why}"):
        read_checkpoint(save(tmp_path / "x.pth", state))
