"""Backbone files, byte for byte the same for the same contents.

The pickle is written instruction by instruction: the standard pickler's bytes depend on which
strings happen to be one object, and on numpy's version (numpy 2 names `numpy._core`, which an
older numpy beside an older detectron2 cannot open). The safetensors header is written here for
the same reason: the library keeps its metadata in no fixed order.
"""

from __future__ import annotations

import json
import struct
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

# Pickle protocol 3: the first with real bytes, readable by every Python 3 ------------------------


def write_pickle(file: BinaryIO, value: Any) -> None:
    """Pickle dicts with text keys, lists, text, numbers, booleans, None, float32 arrays."""
    file.write(b"\x80\x03")
    _pickle(file, value)
    file.write(b".")


def _pickle(file: BinaryIO, value: Any) -> None:
    if value is None:
        file.write(b"N")
    elif value is True or value is False:
        file.write(b"\x88" if value else b"\x89")
    elif isinstance(value, str):
        data = value.encode("utf-8")
        file.write(b"X" + struct.pack("<I", len(data)) + data)
    elif isinstance(value, int):
        file.write(b"J" + struct.pack("<i", value))
    elif isinstance(value, float):
        file.write(b"G" + struct.pack(">d", value))
    elif isinstance(value, Mapping):
        file.write(b"}(")
        for key, item in value.items():
            _pickle(file, str(key))
            _pickle(file, item)
        file.write(b"u")
    elif isinstance(value, list):
        file.write(b"](")
        for item in value:
            _pickle(file, item)
        file.write(b"e")
    else:
        _pickle_array(file, value)


def _pickle_array(file: BinaryIO, array: np.ndarray) -> None:
    """numpy's own reduction of a C-ordered float32 array: reconstruct, then its state."""
    data = np.ascontiguousarray(array, dtype="<f4").reshape(-1).data.cast("B")
    file.write(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n")
    file.write(b"K\x00\x85C\x01b\x87R")  # (ndarray, (0,), b"b"), called
    file.write(b"(K\x01(")
    for size in array.shape:
        file.write(b"J" + struct.pack("<i", size))
    file.write(b"tcnumpy\ndtype\nX\x02\x00\x00\x00f4\x89\x88\x87R")  # dtype("f4", False, True)
    file.write(b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
    file.write(b"\x89B" + struct.pack("<I", len(data)))
    file.write(data)
    file.write(b"tb")


# safetensors ---------------------------------------------------------------------------------


def write_safetensors(
    file: BinaryIO, arrays: Mapping[str, np.ndarray], records: Mapping[str, Any]
) -> None:
    """The format of huggingface/safetensors, records (as json texts) and tensors in this order."""
    texts = {key: json.dumps(record) for key, record in records.items()}
    header: dict[str, Any] = {"__metadata__": texts}
    offset = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": {"float32": "F32", "int64": "I64"}[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight
    file.write(struct.pack("<Q", len(text)) + text)
    for array in arrays.values():
        # a number without dimensions cannot be cast as a view of bytes
        file.write(np.ascontiguousarray(array).reshape(-1).data.cast("B"))


# torch ----------------------------------------------------------------------------------------


def write_torch(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """A state dict as torch.save makes it; through a file object, so that no name gets in."""
    import torch

    torch.save(OrderedDict((name, as_tensor(array)) for name, array in arrays.items()), file)


def as_tensor(array: np.ndarray) -> Any:
    """A tensor on the same memory; a read-only array, of which torch would warn, is copied."""
    import torch

    return torch.from_numpy(array if array.flags.writeable else array.copy())
