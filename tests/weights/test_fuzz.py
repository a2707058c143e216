"""Damaged and random files: one clear line or a true reading; nothing runs, nothing is half there.

Hypothesis draws where and how; the files are true ones of every container that is read.
"""

from __future__ import annotations

import argparse
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import ARCHITECTURES, Architecture
from moco_det.weights.architectures import backbone_tensors
from moco_det.weights.backbone import load_backbone
from moco_det.weights.containers import input_errors, read_contents
from moco_det.weights.convert import convert
from moco_det.weights.reading import read_checkpoint
from moco_det.weights.tensors import tensors_of
from moco_det.weights.writing import write_pickle, write_safetensors
from tests.weights.checkpoints import moco_layout, nothing_but
from tests.weights.watch import nothing_runs

MANY = settings(
    max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
SOME = settings(MANY, max_examples=60)
SMALL = Architecture((1, 1, 1, 1), False, res2_out_channels=64)
FEW = settings(MANY, max_examples=8)


def small_files() -> list[tuple[str, bytes]]:
    value = {"state_dict": {f"conv{i}.weight": torch.ones(2, 2) for i in range(4)}, "epoch": 3}
    new, old = io.BytesIO(), io.BytesIO()
    torch.save(value, new)
    torch.save(value, old, _use_new_zipfile_serialization=False)
    arrays = {"model": {"w": np.ones((2, 3), np.float32)}, "__author__": "x"}
    tensors = safetensors.torch.save({"w": torch.ones(3)}, metadata={"a": "b"})
    return [
        ("new.pth", new.getvalue()),
        ("old.pth", old.getvalue()),
        *((f"arrays{p}.pkl", pickle.dumps(arrays, protocol=p)) for p in (0, 2, 5)),
        ("w.safetensors", tensors),
    ]


FILES = small_files()


def read_all(root: Any) -> None:
    """Every number of every table."""
    for table in [root, *root.values()] if isinstance(root, dict) else []:
        for tensor in tensors_of(table).values() if isinstance(table, dict) else ():
            tensor.read()


@MANY
@given(data=st.data())
def test_damaged_files_end_in_one_line_or_are_read(tmp_path: Path, data: st.DataObject) -> None:
    name, original = data.draw(st.sampled_from(FILES))
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 6))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    length = data.draw(st.one_of(st.just(len(changed)), st.integers(0, len(changed))))
    path = tmp_path / name
    path.write_bytes(changed[:length])
    with nothing_runs():
        try:
            contents = read_contents(path)
            with input_errors(path):
                read_all(contents.root)
            read_checkpoint(path)
        except InputError as error:
            assert name in str(error) and "\n" not in str(error)


@MANY
@given(program=st.binary(max_size=60))
def test_random_programs_end_in_one_line(tmp_path: Path, program: bytes) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x02" + program)
    with nothing_runs(), pytest.raises(InputError, match="x.pkl"):
        read_checkpoint(path)


# Whole networks: the bytes that are no numbers ---------------------------------------------------


@pytest.fixture(scope="module")
def networks(
    tmp_path_factory: pytest.TempPathFactory, query: dict[str, Tensor], key: dict[str, Tensor]
) -> dict[str, Path]:
    """The same small network in each container; the numbers are most of each file."""
    folder = tmp_path_factory.mktemp("networks")
    tensors = backbone_tensors(SMALL)
    q, k = ({t.torchvision: s[t.torchvision] for t in tensors} for s in (query, key))
    arrays = {t.detectron2: q[t.torchvision].numpy() for t in tensors}
    pixels = {"format": "RGB", "mean": [1.0] * 3, "std": [1.0] * 3, "stride_in_1x1": False}
    paths = {}
    for kind, suffix in (("zip", ".pth"), ("legacy", ".pth.tar"), ("pickle", ".pkl")):
        paths[kind] = folder / f"{kind}{suffix}"
    paths["safetensors"] = folder / "w.safetensors"
    torch.save(moco_layout(q, k), paths["zip"])
    layout = {"state_dict": q, "args": argparse.Namespace(lr=1), "best": np.float64(2)}
    torch.save(layout, paths["legacy"], _use_new_zipfile_serialization=False)
    with open(paths["pickle"], "wb") as file:
        write_pickle(file, {"model": arrays, "__author__": "moco_det", "input": pixels})
    with open(paths["safetensors"], "wb") as file:
        write_safetensors(file, {n: t.numpy() for n, t in q.items()}, {"note": "x"})
    return paths


KINDS = ("zip", "legacy", "pickle", "safetensors")


def words_of(data: bytes) -> list[int]:
    """Places near text: keys, opcodes, headers, directories. Trained numbers spell few words."""
    found = []
    for word in (b"conv", b"weight", b"bn", b"running", b"layer", b"res", b"storage", b"PK", b"{"):
        at = data.find(word)
        while at >= 0 and len(found) < 4000:
            found.append(at)
            at = data.find(word, at + 1)
    return sorted(found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_near_a_word_of_a_network_is_one_line_or_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, networks: dict[str, Path], kind: str
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", SMALL)
    original = networks[kind].read_bytes()
    assert read_checkpoint(networks[kind]).architecture == "small"
    places = words_of(original)
    path = tmp_path / networks[kind].name

    @SOME
    @given(data=st.data())
    def flip(data: st.DataObject) -> None:
        at = data.draw(st.sampled_from(places)) + data.draw(st.integers(-24, 24))
        at = min(max(at, 0), len(original) - 1)
        changed = bytearray(original)
        changed[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(changed)
        with nothing_runs():
            try:
                source = read_checkpoint(path)
                for name in source.tensors:
                    source.array(name)
            except InputError as error:
                assert path.name in str(error) and str(error).isprintable()
            else:  # what was hit is no part of the network, or one of its numbers
                assert source.architecture == "small"
                assert set(source.tensors) == {
                    t.torchvision for t in backbone_tensors(ARCHITECTURES["small"])
                }

    flip()


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_cut_off_anywhere_is_refused_by_every_door(
    tmp_path: Path, networks: dict[str, Path], kind: str
) -> None:
    original = networks[kind].read_bytes()
    path = tmp_path / networks[kind].name

    @FEW
    @given(length=st.integers(1, len(original) - 1))
    def cut(length: int) -> None:
        path.write_bytes(original[:length])
        for use in (lambda: convert(path, tmp_path / "b.pkl"), lambda: load_backbone(path)):
            with pytest.raises(InputError) as caught:
                use()
            assert path.name in str(caught.value) and str(caught.value).isprintable()
        assert nothing_but(tmp_path, path.name)

    cut()
