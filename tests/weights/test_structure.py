"""A whole ResNet behind any prefix is found by its names; what a message advises can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moco_det.foundation.errors import InputError
from moco_det.weights.convert import convert
from moco_det.weights.inspection import inspect
from moco_det.weights.reading import read_checkpoint
from moco_det.weights.structure import convert_command
from moco_det.weights.summaries import conversion_lines
from moco_det_tools.convert_weights import main


def save(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def behind(prefix: str, state: dict[str, Tensor]) -> dict[str, Any]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def refusal(path: Path, **options: str) -> str:
    with pytest.raises(InputError) as caught:
        convert(path, path.with_suffix(".pkl"), **options)
    line = str(caught.value)
    assert "\n" not in line and line.isprintable()
    return line


def advised(line: str) -> list[str]:
    """The arguments of the command that a message gives."""
    command = re.search(r"`moco-det convert-weights ([^`]+)`([^,]*)", line)
    assert command, line
    rest = command[2].split("--prefix")
    return shlex.split(command[1] + (f" --prefix{rest[1]}" if len(rest) > 1 else ""))


def follow(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What convert-weights is told in the end by one who types what each message says."""
    monkeypatch.setattr("sys.argv", ["moco-det convert-weights"])
    arguments = [str(path), "out.pkl"]
    for _ in range(4):
        try:
            assert main(arguments) == 0
            return arguments
        except InputError as error:
            told = advised(str(error))
            assert told != arguments, f"told to type the same again: {error}"
            arguments = told
    raise AssertionError("advice without end")


PREFIXES = [
    *("module.backbone.", "model.trunk.", "net.feature_extractor.0.", "0.", "student.encoder."),
    *("backbone.body.", "a b's.", "encoder.model.0.1."),
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_whole_resnet_behind_any_prefix_converts_when_its_pixels_are_named(
    tmp_path: Path, query: dict[str, Tensor], prefix: str
) -> None:
    heads = {
        "my_head.0.weight": torch.ones(3, 3),
        "loss.queue": torch.ones(2),
        "scale": torch.ones(1),
    }
    path = save(tmp_path / "x.pth", {"state_dict": {**behind(prefix, query), **heads}})
    line = refusal(path)
    assert repr(prefix)[1:-1] in line or prefix in line
    assert "resnet18" in line and "channel order" in line and "--from torchvision" in line
    done = convert(path, tmp_path / "b.pkl", source_format="torchvision")
    assert done.tensors == 100 and done.max_abs_difference == 0
    assert set(done.source.head) == {*heads, f"{prefix}fc.weight", f"{prefix}fc.bias"}
    assert np.array_equal(done.source.array("bn1.weight"), query["bn1.weight"].numpy())
    said = "\n".join(conversion_lines(done))
    assert f"found by its names, behind {prefix!r}" in said
    msra = convert(path, tmp_path / "c.pkl", source_format="torchvision-msra").source.known_input()
    assert msra["format"] == "BGR" and msra["stride_in_1x1"]


def test_each_message_leads_on_when_it_is_typed(
    tmp_path: Path,
    query: dict[str, Tensor],
    key: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    one = save(tmp_path / "one.pth", behind("model.trunk.", query))
    assert follow(one, monkeypatch)[2:] == ["--from", "torchvision"]
    two = save(tmp_path / "my two.pth", {**behind("a.", query), **behind("b.", key)})
    assert follow(two, monkeypatch)[2:] == ["--prefix", "a.", "--from", "torchvision"]
    bare = save(tmp_path / "bare.pth", {**query, **behind("encoder_q.", key)})
    assert "--prefix" in follow(bare, monkeypatch)
    odd = save(tmp_path / "odd.pth", {"it's": {"model": query}, "b": {"model": key}})
    assert "--prefix" in follow(odd, monkeypatch)


def test_two_whole_resnets_are_both_named_and_prefix_takes_one(
    tmp_path: Path, query: dict[str, Tensor], key: dict[str, Tensor]
) -> None:
    state = {**behind("a.net.", query), **behind("b.net.", key)}
    path = save(tmp_path / "x.pth", state)
    line = refusal(path)
    assert "2 ResNets, resnet18 behind 'a.net.' and resnet18 behind 'b.net.'" in line
    assert "--prefix a.net." in line and "--prefix b.net." in line
    for prefix, expected in (("a.net.", query), ("b.net", key)):
        source = read_checkpoint(path, prefix=prefix, source_format="torchvision")
        assert np.array_equal(source.array("bn1.weight"), expected["bn1.weight"].numpy())
    line = refusal(path, prefix="c.")
    assert "no ResNet behind --prefix c." in line and "'a.net.' and" in line


def test_one_prefix_in_two_dictionaries_is_told_apart_by_the_dictionary(
    tmp_path: Path, query: dict[str, Tensor], key: dict[str, Tensor]
) -> None:
    path = save(tmp_path / "x.pth", {"a": behind("net.", query), "b": behind("net.", key)})
    line = refusal(path)
    assert "--prefix a:net." in line and "--prefix b:net." in line
    source = read_checkpoint(path, prefix="b:net.", source_format="torchvision")
    assert np.array_equal(source.array("bn1.weight"), key["bn1.weight"].numpy())


def test_a_whole_one_goes_before_an_incomplete_one(
    tmp_path: Path, query: dict[str, Tensor]
) -> None:
    part = {name: tensor for name, tensor in query.items() if not name.startswith("layer4")}
    path = save(tmp_path / "x.pth", {**behind("part.", part), **behind("whole.", query)})
    source = read_checkpoint(path)
    assert source.resnet is not None and source.resnet.prefix == "whole."


def test_an_incomplete_one_alone_is_named_with_what_it_lacks(
    tmp_path: Path, query: dict[str, Tensor]
) -> None:
    small = behind("net.trunk.", dict(list(query.items())[:8]))
    line = refusal(save(tmp_path / "x.pth", {"state_dict": small}))
    assert "behind 'net.trunk.' in 'state_dict': layer1.0.conv2.weight is missing" in line


@pytest.mark.parametrize("path", [("state", "model"), ("a", "b", "model"), ("state", "state_dict")])
def test_a_known_format_is_known_in_nested_dictionaries(
    tmp_path: Path, query: dict[str, Tensor], path: tuple[str, ...]
) -> None:
    """With its pixels: nothing has to be named."""
    value: dict[str, Any] = behind("module.encoder_q.", query)
    for word in reversed(path):
        value = {word: value, "epoch": 3}
    source = read_checkpoint(save(tmp_path / "x.pth", value))
    assert source.format == "facebookresearch/moco" and source.resnet is None
    assert source.known_input()["format"] == "RGB"


def test_wrappers_in_one_another_and_their_counters_are_the_format_within(
    tmp_path: Path, query: dict[str, Tensor]
) -> None:
    state = {"n_averaged": torch.tensor(3), **behind("module.module.", query)}
    assert read_checkpoint(save(tmp_path / "x.pth", state)).format == "torchvision"
    inner = {"n_averaged": torch.tensor(3), **behind("module._orig_mod.module.encoder_q.", query)}
    assert read_checkpoint(save(tmp_path / "y.pth", inner)).format == "facebookresearch/moco"


@pytest.mark.parametrize("prefix", ["", "x."])
def test_children_of_a_resnet_and_detectron2s_names_are_found_too(
    tmp_path: Path, query: dict[str, Tensor], prefix: str
) -> None:
    numbers = {
        "conv1": "0",
        "bn1": "1",
        **{f"layer{n}": str(n + 3) for n in range(1, 5)},
        "fc": "9",
    }
    children = {
        ".".join([numbers[n.split(".")[0]], *n.split(".")[1:]]): t for n, t in query.items()
    }
    path = save(tmp_path / "x.pth", behind(prefix, children))
    source = read_checkpoint(path, source_format="torchvision")
    assert np.array_equal(source.array("layer4.1.bn2.bias"), query["layer4.1.bn2.bias"].numpy())
    from moco_det.resnet.architectures import ARCHITECTURES
    from moco_det.weights.architectures import backbone_tensors

    names = {t.torchvision: t.detectron2 for t in backbone_tensors(ARCHITECTURES["resnet18"])}
    theirs = behind("student.backbone.", {names[n]: t for n, t in query.items() if n in names})
    line = refusal(save(tmp_path / "y.pth", theirs))
    assert "--from detectron2-rgb" in line and "--from detectron2-msra" in line
    convert(tmp_path / "y.pth", tmp_path / "b.pkl", source_format="detectron2-rgb")


def test_a_known_layout_with_a_head_of_another_name_asks_for_the_pixels_alone(
    tmp_path: Path, query: dict[str, Tensor]
) -> None:
    path = save(tmp_path / "x.pth", {**query, "my_projector.0.weight": torch.ones(3, 3)})
    assert "resnet18 without a prefix" in refusal(path)
    assert convert(path, tmp_path / "b.pkl", source_format="torchvision").tensors == 100


def test_part_of_another_network_behind_the_prefix_is_no_head(
    tmp_path: Path, query: dict[str, Tensor]
) -> None:
    for part, said in (
        ("layer1.0.gate.weight", "1 tensors that resnet does not have: net.layer1.0.gate.weight"),
        ("layer1.0.se.fc1.weight", "channel attention"),
        ("layer5.0.conv1.weight", "layer5.0.conv1"),
    ):
        state = behind("net.", {**query, part: query["bn1.weight"]})
        assert said in refusal(save(tmp_path / "x.pth", state))


def test_inspection_says_where_it_lies_and_what_is_to_be_named(
    tmp_path: Path, query: dict[str, Tensor]
) -> None:
    facts = inspect(save(tmp_path / "x.pth", behind("net.", query)))
    assert facts["format"] == "resnet" and facts["prefix"] == "net."
    assert not facts["convertible"] and "--from torchvision" in facts["problem"]
    facts = inspect(tmp_path / "x.pth", source_format="torchvision", prefix="net.")
    assert facts["convertible"] and facts["architecture"] == "resnet18"


def test_a_dictionary_within_itself_and_many_dictionaries_end(tmp_path: Path) -> None:
    endless: dict[str, Any] = {"a": {}}
    endless["a"]["b"] = endless
    assert "no known format" in refusal(save(tmp_path / "x.pth", endless))
    many = {str(n): {str(m): {"w": 1} for m in range(40)} for n in range(60)}
    assert "no known format" in refusal(save(tmp_path / "y.pth", many))
    start = {"0.weight": torch.ones(1), "4.0.conv1.weight": torch.ones(1)}
    starts = {f"{n}.{name}": tensor for n in range(5000) for name, tensor in start.items()}
    assert "16 ResNets" in refusal(save(tmp_path / "z.pth", starts))


@pytest.mark.parametrize(
    ("name", "stem"),
    [("moco.pth.tar", "moco"), ("R-50.pkl", "R-50"), ("v1.2.pt", "v1.2"), (".pth", "weights")],
)
def test_the_advised_output_is_named_after_the_file(name: str, stem: str) -> None:
    assert convert_command(Path(name)).endswith(f"weights/{stem}.pkl")
    inside = Path("weights") / f"{stem}.pkl"
    assert convert_command(inside).endswith(f"weights/{stem}_converted.pkl")
