"""Every layout against its golden key list, and the refusals.

The lists in golden/ were written by the projects' own code (torchvision, moco/builder.py,
detectron2's models) or, for lemniscate, moco-v3, lightly and solo-learn, after their sources.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moco_det.errors import InputError
from moco_det.weights.architectures import deduce
from moco_det.weights.formats import BY_NAME, FORMATS, first_keys, matches, sort_keys
from moco_det.weights.reading import read_checkpoint
from moco_det.weights.tensors import TensorRef

GOLDEN = Path(__file__).parent / "golden"
# list -> (format, architecture, wrapping of the table, keys that are not the query's backbone)
EXPECTED: dict[str, tuple[str, str, Any, int]] = {
    "moco_det_1": ("moco-det/1", "resnet18", lambda t: {"format": "moco-det/1", "encoder": t}, 0),
    "moco_v1": ("facebookresearch/moco", "resnet18", lambda t: {"state_dict": t}, 126),
    "moco_v2": ("facebookresearch/moco", "resnet18", lambda t: {"state_dict": t}, 130),
    "moco_v3": ("facebookresearch/moco-v3", "resnet18", lambda t: {"state_dict": t}, 150),
    "lemniscate": ("lemniscate", "resnet18", lambda t: {"state_dict": t, "lemniscate": 0}, 2),
    "torchvision": ("torchvision", "resnet18", lambda t: t, 2),
    "solo_learn": ("solo-learn", "resnet18", lambda t: {"state_dict": t}, 132),
    "lightly": ("lightly", "resnet18", lambda t: {"state_dict": t}, 128),
    "detectron2_bare": ("detectron2", "resnet18", lambda t: {"model": t}, 0),
    "detectron2_fpn": ("detectron2", "resnet18", lambda t: {"model": t}, 42),
    "detectron2_dc5": ("detectron2", "resnet18", lambda t: {"model": t}, 14),
    "detectron2_c4": ("detectron2", "resnet50", lambda t: {"model": t}, 10),
}


def unread() -> np.ndarray:
    raise AssertionError("recognising a format must not read a tensor")


def golden(name: str) -> dict[str, TensorRef]:
    table = {}
    for line in (GOLDEN / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        key, sizes = line.split()
        shape = () if sizes == "-" else tuple(int(size) for size in sizes.split("x"))
        dtype = "float32" if shape else "int64"
        table[key] = TensorRef(dtype, shape, unread)
    return table


def test_every_golden_list_and_every_recognised_format_is_under_test() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(EXPECTED)
    named = {expected[0] for expected in EXPECTED.values()}
    assert named == {row.name for row in FORMATS if row.recognised}


@pytest.mark.parametrize("name", EXPECTED)
def test_one_format_alone_recognises_the_keys_and_claims_them_all(name: str) -> None:
    format_name, architecture, wrap, apart = EXPECTED[name]
    table = golden(name)
    found = matches(wrap(table), [row for row in FORMATS if row.recognised])
    assert [match.format.name for match in found] == [format_name]
    for encoder in BY_NAME[format_name].encoders:
        parts = sort_keys(BY_NAME[format_name], encoder, found[0].table)
        assert parts.unclaimed == () and parts.twice == ()
        shapes = {key: tensor.shape for key, tensor in parts.tensors.items()}
        assert deduce(shapes) == architecture
        counters = len(parts.counters)
        assert len(table) == len(shapes) + counters + len(parts.head) + parts.other_encoder
        assert parts.other_encoder + len(parts.head) == apart


def test_mocos_extra_norm_of_the_c4_head_is_head() -> None:
    table = golden("detectron2_c4")
    table["roi_heads.res5.norm.weight"] = TensorRef("float32", (2048,), unread)
    parts = sort_keys(BY_NAME["detectron2"], "query", table)
    assert "roi_heads.res5.norm.weight" in parts.head and len(parts.tensors) == 265


@pytest.mark.parametrize("prefix", ["model.", "module.module.", "trunk.base_net._feature_blocks."])
def test_another_prefix_is_not_taken_for_anything(prefix: str) -> None:
    table = {prefix + key: tensor for key, tensor in golden("torchvision").items()}
    assert matches({"state_dict": table}, FORMATS) == []


def test_a_dataparallel_prefix_is_part_of_the_torchvision_format() -> None:
    table = {"module." + key: tensor for key, tensor in golden("torchvision").items()}
    found = matches({"state_dict": table}, [row for row in FORMATS if row.recognised])
    assert [match.format.name for match in found] == ["torchvision"]


def test_first_keys_come_from_the_largest_table() -> None:
    assert first_keys({"a": {}, "state_dict": golden("moco_v1")}).startswith(
        "state_dict: module.queue, module.queue_ptr"
    )


def save(path: Path, value: object) -> Path:
    import torch

    torch.save(value, path)
    return path


def test_an_unknown_prefix_lists_the_first_keys_and_the_formats(
    tmp_path: Path, query: dict[str, Any]
) -> None:
    small = {f"net.trunk.{n}": t for n, t in list(query.items())[:8]}
    with pytest.raises(InputError) as caught:
        read_checkpoint(save(tmp_path / "x.pth", {"state_dict": small}))
    line = str(caught.value)
    assert "net.trunk.conv1.weight" in line and "facebookresearch/moco" in line and "--from" in line


def test_two_possible_encoders_are_an_error_unless_one_is_named(
    tmp_path: Path, query: dict[str, Any]
) -> None:
    both = {**query, **{f"encoder_q.{n}": t for n, t in query.items()}}
    path = save(tmp_path / "both.pth", both)
    with pytest.raises(InputError, match="facebookresearch/moco, torchvision.*--from"):
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
    path = save(tmp_path / "x.pth", {**query, "layer1.0.se.fc1.weight": query["bn1.weight"]})
    with pytest.raises(InputError, match="1 tensors that torchvision does not have: layer1.0.se"):
        read_checkpoint(path)


def test_a_backbone_with_a_hole_is_an_error(tmp_path: Path, query: dict[str, Any]) -> None:
    path = save(tmp_path / "x.pth", {n: t for n, t in query.items() if n != "layer2.0.bn1.bias"})
    with pytest.raises(InputError, match="lacks 1 of 100 backbone tensors: layer2.0.bn1.bias"):
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
    with pytest.raises(InputError, match="holds one encoder only"):
        read_checkpoint(torchvision_file, encoder="key")
