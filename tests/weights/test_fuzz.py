"""Damaged and random files: one clear line or a reading, never a traceback."""

from __future__ import annotations

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

from moco_det.errors import InputError
from moco_det.weights.files import naming, read_contents
from moco_det.weights.reading import read_checkpoint
from moco_det.weights.tensors import tensors_of


def small_files() -> list[tuple[str, bytes]]:
    value = {"state_dict": {f"conv{i}.weight": torch.ones(2, 2) for i in range(4)}, "epoch": 3}
    new, old = io.BytesIO(), io.BytesIO()
    torch.save(value, new)
    torch.save(value, old, _use_new_zipfile_serialization=False)
    arrays = {"model": {"w": np.ones((2, 3), np.float32)}, "__author__": "x"}
    plain = pickle.dumps(arrays, protocol=2)
    tensors = safetensors.torch.save({"w": torch.ones(3)}, metadata={"a": "b"})
    return [
        ("new.pth", new.getvalue()),
        ("old.pth", old.getvalue()),
        ("arrays.pkl", plain),
        ("w.safetensors", tensors),
    ]


FILES = small_files()


def read_all(root: Any) -> None:
    """Every number of every table."""
    for table in [root, *root.values()] if isinstance(root, dict) else []:
        for tensor in tensors_of(table).values() if isinstance(table, dict) else ():
            tensor.read()


@settings(
    max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(data=st.data())
def test_damaged_files_end_in_one_line_or_are_read(tmp_path: Path, data: st.DataObject) -> None:
    name, original = data.draw(st.sampled_from(FILES))
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 6))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    length = data.draw(st.one_of(st.just(len(changed)), st.integers(0, len(changed))))
    path = tmp_path / name
    path.write_bytes(changed[:length])
    try:
        contents = read_contents(path)
        with naming(path):
            read_all(contents.root)
        read_checkpoint(path)
    except InputError as error:
        assert name in str(error) and "\n" not in str(error)


@settings(
    max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(program=st.binary(max_size=60))
def test_random_programs_end_in_one_line(tmp_path: Path, program: bytes) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x02" + program)
    with pytest.raises(InputError, match="x.pkl"):
        read_checkpoint(path)
