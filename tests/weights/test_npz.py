"""numpy's npz: arrays by their names, read without numpy's loader; objects stay unread."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from moco_det.foundation.errors import InputError
from moco_det.weights.containers import read_contents
from moco_det.weights.convert import convert
from moco_det.weights.reading import read_checkpoint
from moco_det.weights.tensors import TensorRef
from tests.weights.watch import nothing_runs


def npz(path: Path, header: bytes, data: bytes = b"", version: bytes = b"\x01\x00") -> Path:
    """An npz whose one array, `x`, has this header."""
    length = len(header).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY" + version + length + header + data)
    return path


def test_a_resnet_in_an_npz_converts(tmp_path: Path, query: dict[str, Tensor]) -> None:
    arrays = {f"module.encoder_q.{name}": tensor.numpy() for name, tensor in query.items()}
    np.savez(tmp_path / "x.npz", **arrays)
    done = convert(tmp_path / "x.npz", tmp_path / "b.pkl")
    assert done.source.format == "facebookresearch/moco" and done.source.contents.kind == "npz"
    assert done.max_abs_difference == 0 and done.tensors == 100


def test_arrays_are_read_bit_for_bit_in_every_order_and_type(tmp_path: Path) -> None:
    values = {
        "a/f": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "b/f": np.arange(6, dtype=np.float16).reshape(3, 2),
        "n": np.int64(7),
        "none": np.zeros((0, 4), np.float32),
    }
    np.savez(tmp_path / "x.npz", **values)
    root = read_contents(tmp_path / "x.npz").root
    for name, value in values.items():
        assert isinstance(root[name], TensorRef)
        assert np.array_equal(root[name].read(), value), name
    with np.load(tmp_path / "x.npz") as loaded:
        assert set(loaded) == set(root)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (9,), }\n", "shape and size differ"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }\n", "no known format"),
        (b"{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }\n", "no known format"),
        (b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", "no known format"),
        (b"__import__('os').system('true')\n", "no known format"),
        (b"(" * 5000, "no known format"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"9" * 5000 + b",)}", "no known"),
    ],
)
def test_a_wrong_array_is_one_line_and_nothing_runs(
    tmp_path: Path, header: bytes, message: str
) -> None:
    path = npz(tmp_path / "x.npz", header, b"\0\0\0\0")
    with nothing_runs(), pytest.raises(InputError, match=message) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_and_a_compressed_one_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros(99_999, np.float32))
    data = bytearray(path.read_bytes())
    data[200_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        read_checkpoint(path)
    np.savez_compressed(path, x=np.zeros(9))
    with pytest.raises(InputError, match="compressed npz: save it with numpy.savez"):
        read_checkpoint(path)
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([{}], dtype=object))
    path.write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="no known format"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"text")
    with pytest.raises(InputError, match="broken header"):
        read_checkpoint(path)
