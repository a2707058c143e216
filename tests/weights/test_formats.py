"""Every layout against its golden key list: one format recognises it and claims every key."""

from __future__ import annotations

import pytest

from moco_det.weights.architectures import UnknownArchitecture, deduce
from moco_det.weights.formats import BY_NAME, ENCODERS, FORMATS
from moco_det.weights.recognition import (
    classify_keys,
    encoders_in,
    first_keys,
    matching_formats,
)
from moco_det.weights.tensors import TensorRef
from tests.weights.golden_lists import GOLDEN, LISTS, golden, unread

RECOGNISED = [row for row in FORMATS if not row.by_name_only]


def test_every_golden_list_and_every_recognised_format_is_under_test() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(LISTS)
    assert {expected.format for expected in LISTS.values()} == {row.name for row in RECOGNISED}


@pytest.mark.parametrize("name", LISTS)
def test_one_format_alone_recognises_the_keys_and_claims_them_all(name: str) -> None:
    expected = LISTS[name]
    table = golden(name)
    found = matching_formats(expected.wrap(table), RECOGNISED)
    assert [match.format.name for match in found] == [expected.format]
    row, keys = found[0].format, found[0].table
    assert len(keys) == len(table)
    assert encoders_in(row, keys) == expected.encoders
    for encoder in expected.encoders:
        parts = classify_keys(row, encoder, keys)
        assert parts.unclaimed == () and parts.twice == ()
        assert deduce({n: t.shape for n, t in parts.tensors.items()}) == expected.architecture
        assert (parts.other_encoder, len(parts.head)) == (expected.other, expected.head)
        if not row.affine:  # where norms lack statistics, tensors are added and biases folded in
            found_here = len(parts.tensors) + len(parts.counters)
            assert found_here + expected.other + expected.head == len(table)


def key_of(name: str, torchvision_name: str) -> str:
    """The list's own word for a tensor of the default encoder."""
    expected = LISTS[name]
    row = BY_NAME[expected.format]
    keys = matching_formats(expected.wrap(golden(name)), [row])[0].table
    names = {row.backbone_name(expected.encoders[0], key): key for key in keys}
    return names[torchvision_name]


@pytest.mark.parametrize("name", LISTS)
def test_a_tensor_more_is_nobodys_and_a_tensor_less_is_missed(name: str) -> None:
    expected = LISTS[name]
    row = BY_NAME[expected.format]
    key = key_of(name, "layer2.0.bn1.bias")
    table = dict(matching_formats(expected.wrap(golden(name)), [row])[0].table)
    table[f"{key}2"] = TensorRef("float32", (3,), unread)
    assert classify_keys(row, expected.encoders[0], table).unclaimed == (f"{key}2",)
    del table[key]
    parts = classify_keys(row, expected.encoders[0], table)
    with pytest.raises(UnknownArchitecture, match="lacks 1 of [0-9]+ .*layer2.0.bn1.bias"):
        deduce({name: tensor.shape for name, tensor in parts.tensors.items()})


def test_every_encoders_name_is_one_that_can_be_asked_for() -> None:
    assert {choice for row in FORMATS for choice in row.encoders} == set(ENCODERS)


def test_mocos_extra_norm_of_the_c4_head_is_head() -> None:
    table = golden("detectron2_c4")
    table["roi_heads.res5.norm.weight"] = TensorRef("float32", (2048,), unread)
    parts = classify_keys(BY_NAME["detectron2"], "query", table)
    assert "roi_heads.res5.norm.weight" in parts.head and len(parts.tensors) == 265


@pytest.mark.parametrize("prefix", ["model.", "trunk.base_net._feature_blocks."])
def test_another_prefix_is_not_taken_for_anything(prefix: str) -> None:
    table = {prefix + key: tensor for key, tensor in golden("torchvision").items()}
    assert matching_formats({"state_dict": table}, FORMATS) == []


@pytest.mark.parametrize("prefix", ["module.", "module.module."])
def test_a_dataparallel_prefix_is_part_of_the_torchvision_format(prefix: str) -> None:
    table = {prefix + key: tensor for key, tensor in golden("torchvision").items()}
    found = matching_formats(
        {"state_dict": table}, [row for row in FORMATS if not row.by_name_only]
    )
    assert [match.format.name for match in found] == ["torchvision"]


def test_first_keys_come_from_the_largest_table() -> None:
    assert first_keys({"a": {}, "state_dict": golden("moco_v1")}).startswith(
        "state_dict: module.queue, module.queue_ptr"
    )
