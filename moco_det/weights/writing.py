"""Backbone files, byte for byte the same for the same contents, whole or absent.

The pickle is written instruction by instruction: the standard pickler's bytes depend on which
strings happen to be one object, and on numpy's version (numpy 2 names `numpy._core`, which an
older numpy beside an older detectron2 cannot open). The safetensors header is written here for
the same reason: the library keeps its metadata in no fixed order.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moco_det.foundation.errors import InputError

METADATA_KEYS = ("input", "source", "verified")


def replace_whole(
    path: Path, write: Callable[[BinaryIO], None], check: Callable[[Path], None]
) -> None:
    """Write beside `path`, check what was written, then rename it into place.

    Folders that are not there are made. Raises InputError when the folder cannot be written to; on
    any failure nothing is left behind.
    """
    if path.is_dir():
        raise InputError(f"{path} is a directory: name the output file in it")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file: name another output")
    made = [folder for folder in path.parents if not folder.exists()]  # the innermost first
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        check(partial)
        os.replace(partial, path)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path} cannot be written: {reason}; name another output") from None
    finally:
        with suppress(OSError):  # where none could be made, as on a read-only disk
            partial.unlink()
        for folder in made:
            with suppress(OSError):  # the file is in it
                folder.rmdir()


# Pickle protocol 3: the first with real bytes, readable by every Python 3 ------------------------


def write_pickle(file: BinaryIO, value: Any) -> None:
    """Pickle dicts with text keys, lists, text, numbers, None and float32 arrays."""
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
    elif isinstance(value, (list, tuple)):
        file.write(b"](")
        for item in value:
            _pickle(file, item)
        file.write(b"e")
    elif isinstance(value, np.ndarray):
        _pickle_array(file, value)
    else:
        raise TypeError(f"a backbone file holds no {type(value).__name__}")


def _pickle_array(file: BinaryIO, array: np.ndarray) -> None:
    """numpy's own reduction of a C-ordered float32 array: reconstruct, then its state."""
    if array.dtype != np.float32:
        raise TypeError(f"a backbone file holds float32 only, not {array.dtype}")
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
    file: BinaryIO, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """The format of huggingface/safetensors, metadata and tensors in the order given."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, array in arrays.items():
        kind = {"float32": "F32", "int64": "I64"}[array.dtype.name]
        header[name] = {
            "dtype": kind,
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


def metadata_text(records: Mapping[str, Any]) -> dict[str, str]:
    """The records beside the weights as a safetensors header wants them: json texts."""
    return {key: json.dumps(records[key]) for key in METADATA_KEYS if key in records}


# torch ----------------------------------------------------------------------------------------


def write_torch(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """A state dict as torch.save makes it; through a file object, so that no name gets in."""
    from collections import OrderedDict

    import torch

    state = OrderedDict(
        (name, torch.from_numpy(array if array.flags.writeable else array.copy()))
        for name, array in arrays.items()
    )
    torch.save(state, file)
