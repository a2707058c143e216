"""From a path to its contents: torch files old and new, pickles, safetensors.

Nothing in a file is ever executed, and every wrong kind of file is one clear line. A single reader
serves them all (`inert`), instead of `torch.load(weights_only=True)` plus a second one for the many
published files that it refuses because an argparse.Namespace lies beside the weights; a test holds
it against `weights_only=True` wherever that reads the file.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moco_det.errors import InputError
from moco_det.weights.inert import DamagedPickle, HostilePickle, InertUnpickler, Named, Stub
from moco_det.weights.tensors import (
    DTYPES,
    NUMPY_BUILDERS,
    TORCH_BUILDERS,
    FileSlice,
    FileState,
    Storage,
    TensorRef,
    storage_of,
)

MAX_FILE = 16 << 30  # a ResNet-152 with optimizer is 0.7 GB
MAX_PICKLE_MEMBER = 256 << 20  # data.pkl holds names and shapes, not numbers
MAX_HEADER = 64 << 20
MAX_MEMBERS = 200_000
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.save before 1.6 starts with this pickled number
SAFETENSORS_DTYPES = {
    "F32": "float32",
    "F64": "float64",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass
class Contents:
    """What a file holds, tensors as descriptions. `kind` says in words how it was stored."""

    path: Path
    kind: str
    root: Any
    sha256: str
    size: int
    foreign: tuple[str, ...]
    state: FileState
    metadata: dict[str, Any] = field(default_factory=dict)


def read_contents(path: str | Path) -> Contents:
    """Everything in a checkpoint file, without running any of it.

    Raises InputError, one line, for whatever is not a readable checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a directory: name the checkpoint file in it")
    try:
        state = FileState.of(path)
        if not path.is_file():
            raise InputError(f"{path} is not a regular file: name a checkpoint file")
        if state.size == 0:
            raise InputError(f"{path} is empty (0 bytes): fetch or save it again")
        if state.size > MAX_FILE:
            raise InputError(
                f"{path} has {state.size >> 30} GiB: larger than any ResNet checkpoint "
                f"(at most {MAX_FILE >> 30} GiB are read)"
            )
        with open(path, "rb") as file:
            contents = _dispatch(path, state, file)
            contents.sha256 = _sha256(file)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the name of the weights file") from None
    except HostilePickle as error:
        raise InputError(
            f"{path} would run {error} if it were opened in the usual way: nothing was run; "
            "do not use this file"
        ) from None
    except DamagedPickle as error:
        raise InputError(
            f"{path} is not a checkpoint, or is truncated or damaged ({error}): "
            "fetch or save it again"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    state.check()
    return contents


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _dispatch(path: Path, state: FileState, file: BinaryIO) -> Contents:
    start = file.read(256)
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        return _torch_zip(path, state, file)
    if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < state.size:
        return _safetensors(path, state, file)
    if start[:1] == b"\x80" or path.suffix == ".pkl":
        return _pickle_or_legacy(path, state, file)
    raise InputError(f"{path} {_what_else(start)}")


def _what_else(start: bytes) -> str:
    """The cure for a file that is plainly something else."""
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "is a web page, not a checkpoint: the download failed, fetch the file itself again"
    if text.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the weights: run `git lfs pull`"
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"Rar!", b"7z\xbc\xaf")):
        return "is a compressed archive: unpack it and name the checkpoint inside"
    return "is not a checkpoint: its first bytes are none of torch's, pickle's or safetensors'"


# torch.save since 1.6: a zip of uncompressed members -------------------------------------------


def _torch_zip(path: Path, state: FileState, file: BinaryIO) -> Contents:
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, EOFError):
        raise InputError(
            f"{path} is truncated or damaged (no directory at its end): fetch or save it again"
        ) from None
    if len(members) > MAX_MEMBERS:
        raise InputError(f"{path} is not a checkpoint: an archive of {len(members)} files")
    slices: dict[str, FileSlice] = {}
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise InputError(
                f"{path} is a compressed archive, which torch.save never writes: unpack it and "
                "name the checkpoint inside"
            )
        inner = member.filename.partition("/")[2] or member.filename
        slices[inner] = _member(path, state, file, member)
    if "data.pkl" not in slices:
        raise InputError(f"{path} is a zip archive without a checkpoint in it: unpack it")
    if "constants.pkl" in slices or any(name.startswith("code/") for name in slices):
        raise InputError(
            f"{path} is a TorchScript program, which is not opened: save its state_dict() instead"
        )
    order = slices.get("byteorder")
    if order is not None and order.length < 10 and order.read().strip() != b"little":
        raise InputError(f"{path} was saved on a big-endian machine: save it on a common one")
    data = slices["data.pkl"]
    if data.length > MAX_PICKLE_MEMBER:
        raise InputError(f"{path} is not a checkpoint: its table of names has {data.length} bytes")
    storages: dict[str, Storage | Stub] = {}

    def persistent(key: Any) -> Storage | Stub:
        if not isinstance(key, tuple) or len(key) != 5 or key[0] != "storage":
            raise DamagedPickle("an unknown kind of reference")
        _, kind, name, _, numel = key
        if str(name) not in storages:
            storage = storage_of(kind, numel)
            if isinstance(storage, Storage):
                storage.data = slices.get(f"data/{name}")
                size = np.dtype(DTYPES[storage.dtype]).itemsize * storage.numel
                if storage.data is None or storage.data.length != size:
                    raise DamagedPickle(f"storage {name} is missing or has another size")
            storages[str(name)] = storage
        return storages[str(name)]

    blob = data.read()
    reader = InertUnpickler(
        io.BytesIO(blob),
        len(blob),
        builders={**TORCH_BUILDERS, **NUMPY_BUILDERS},
        persistent=persistent,
    )
    root = reader.load()
    return Contents(
        path, "torch.save (zip)", root, "", state.size, tuple(sorted(reader.foreign)), state
    )


def _member(path: Path, state: FileState, file: BinaryIO, member: zipfile.ZipInfo) -> FileSlice:
    """Where a stored member's bytes lie, from its own local header."""
    file.seek(max(member.header_offset, 0))
    header = file.read(30)
    if len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise InputError(f"{path} is truncated or damaged: fetch or save it again")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    offset = member.header_offset + 30 + name_length + extra_length
    if member.file_size < 0 or offset + member.file_size > state.size:
        raise InputError(f"{path} is truncated or damaged: fetch or save it again")
    return FileSlice(state, offset, member.file_size, member.CRC)


# torch.save before 1.6, and plain pickles ------------------------------------------------------


def _pickle_or_legacy(path: Path, state: FileState, file: BinaryIO) -> Contents:
    builders = {**TORCH_BUILDERS, **NUMPY_BUILDERS}
    reader = InertUnpickler(file, state.size, builders=builders)
    root = reader.load()
    if root == LEGACY_MAGIC and type(root) is int:
        return _torch_legacy(path, state, file)
    return Contents(path, "pickle", root, "", state.size, tuple(sorted(reader.foreign)), state)


def _torch_legacy(path: Path, state: FileState, file: BinaryIO) -> Contents:
    """Pickles one after another (version, machine, object, keys), then the storages' bytes."""
    if InertUnpickler(file, state.size).load() != 1001:
        raise DamagedPickle("an unknown version of torch.save")
    machine = InertUnpickler(file, state.size).load()
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise InputError(f"{path} was saved on a big-endian machine: save it on a common one")
    storages: dict[str, Storage | Stub] = {}
    views: list[tuple[Storage, Storage]] = []

    def persistent(key: Any) -> Any:
        if isinstance(key, tuple) and key and key[0] == "module":
            return key[1] if len(key) > 1 and isinstance(key[1], Named) else Stub("module")
        if not isinstance(key, tuple) or len(key) != 6 or key[0] != "storage":
            raise DamagedPickle("an unknown kind of reference")
        _, kind, name, _, numel, view = key
        storage = storages.setdefault(str(name), storage_of(kind, numel))
        if view is None or not isinstance(storage, Storage):
            return storage
        if not isinstance(view, tuple) or len(view) != 3:
            raise DamagedPickle("an unknown kind of view")
        _, base, length = view
        if type(base) is not int or type(length) is not int or base < 0 or length < 0:
            raise DamagedPickle("an unknown kind of view")
        if base + length > storage.numel:
            raise DamagedPickle("a view larger than its storage")
        part = Storage(storage.dtype, length, base=base)
        views.append((part, storage))
        return part

    reader = InertUnpickler(
        file, state.size, builders={**TORCH_BUILDERS, **NUMPY_BUILDERS}, persistent=persistent
    )
    root = reader.load()
    keys = InertUnpickler(file, state.size).load()
    if not isinstance(keys, list):
        raise DamagedPickle("no list of storages")
    for key in keys:
        storage = storages.get(str(key))
        if not isinstance(storage, Storage):
            raise DamagedPickle("storages of an unsupported type")
        header = file.read(8)
        if len(header) != 8:
            raise DamagedPickle("the file ends too early")
        length = storage.numel * np.dtype(DTYPES[storage.dtype]).itemsize
        offset = file.tell()
        if struct.unpack("<q", header)[0] != storage.numel or offset + length > state.size:
            raise DamagedPickle("the file ends too early, or a storage has another size")
        storage.data = FileSlice(state, offset, length)
        file.seek(length, io.SEEK_CUR)
    for part, storage in views:
        part.data = storage.data
    foreign = tuple(sorted(reader.foreign))
    return Contents(path, "torch.save (before 1.6)", root, "", state.size, foreign, state)


# safetensors -----------------------------------------------------------------------------------


def _safetensors(path: Path, state: FileState, file: BinaryIO) -> Contents:
    """An eight-byte length, a json header, then the tensors' bytes."""
    (length,) = struct.unpack("<Q", file.read(8))
    if length > MAX_HEADER:
        raise InputError(f"{path} is not a checkpoint: a header of {length} bytes")
    try:
        header = json.loads(file.read(length).decode("utf-8"))
        metadata = dict(header.pop("__metadata__", None) or {})
        root = {name: _safetensor(state, 8 + length, entry) for name, entry in dict(header).items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path} is truncated or damaged: fetch or save it again") from None
    return Contents(path, "safetensors", root, "", state.size, (), state, metadata)


def _safetensor(state: FileState, start: int, entry: Any) -> TensorRef | Stub:
    if entry["dtype"] not in SAFETENSORS_DTYPES:
        return Stub(f"safetensors {entry['dtype']}")
    dtype = SAFETENSORS_DTYPES[entry["dtype"]]
    first, last = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError("shape")
    count = math.prod(shape)
    if last - first != count * np.dtype(DTYPES[dtype]).itemsize or first < 0:
        raise ValueError("size")
    if start + last > state.size:
        raise ValueError("truncated")
    place = FileSlice(state, start + first, last - first)

    def fetch() -> np.ndarray:
        return np.frombuffer(place.read(), dtype=DTYPES[dtype]).reshape(shape)

    return TensorRef(dtype, shape, fetch)
