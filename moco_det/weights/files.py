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
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moco_det.foundation.errors import InputError
from moco_det.weights.architectures import UnknownArchitecture
from moco_det.weights.file_slices import BLOCK, FileSlice, FileState, open_regular
from moco_det.weights.inert import InertUnpickler
from moco_det.weights.mistaken import NO_CHECKPOINT, mistaken_for
from moco_det.weights.stubs import DamagedPickle, HostilePickle, Named, Stub
from moco_det.weights.tensors import (
    DTYPES,
    NUMPY_BUILDERS,
    TORCH_BUILDERS,
    Storage,
    TensorRef,
    storage_of,
)

MAX_FILE = 16 << 30  # a ResNet-152 with optimizer is 0.7 GB
MAX_HEADER = 8 << 20  # of safetensors; names and shapes take about 100 bytes a tensor
MAX_DIRECTORY = 8 << 20  # of a zip; likewise
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.save before 1.6 starts with this pickled number
LEGACY_MAGIC_TEXT = b"L%dL\n" % LEGACY_MAGIC  # by protocol 0
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
    file, state = open_regular(path)
    with naming(path), file:
        _check_size(path, state.size)
        contents = _dispatch(path, state, file)
        contents.sha256 = sha256_of(file)
    state.check()
    return contents


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what reading found wrong into an InputError that names the file."""
    try:
        yield
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
    except UnknownArchitecture as error:
        raise InputError(f"{path}: unsupported architecture: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def _check_size(path: Path, size: int) -> None:
    if size == 0:
        raise InputError(f"{path} is empty (0 bytes): fetch or save it again")
    if size > MAX_FILE:
        raise InputError(
            f"{path} has {size >> 30} GiB: larger than any ResNet checkpoint "
            f"(at most {MAX_FILE >> 30} GiB are read)"
        )


def digest_of(path: Path) -> str:
    """sha256 (hex) of a file; raises InputError where it is no readable one."""
    file, _ = open_regular(path)
    with naming(path), file:
        return sha256_of(file)


def sha256_of(file: BinaryIO) -> str:
    """sha256 (hex) of an open file, from its start."""
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _dispatch(path: Path, state: FileState, file: BinaryIO) -> Contents:
    start = file.read(512)
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        return _torch_zip(path, state, file)
    if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < state.size:
        return _safetensors(path, state, file)
    other = mistaken_for(start)
    pickled = start[:1] == b"\x80" or path.suffix == ".pkl" or start.startswith(LEGACY_MAGIC_TEXT)
    if pickled and other == NO_CHECKPOINT:
        return _pickle_or_legacy(path, state, file)
    raise InputError(f"{path} {other}")


# torch.save since 1.6: a zip of uncompressed members -------------------------------------------


class _Careful:
    """A file for zipfile, which would take a directory of any size into memory."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        if count < 0:
            count = self.size - self.file.tell()
        if not 0 <= count <= MAX_DIRECTORY:
            raise zipfile.BadZipFile("an absurd directory")
        return self.file.read(count)


def _torch_zip(path: Path, state: FileState, file: BinaryIO) -> Contents:
    slices = _members(path, state, file)
    if "data.pkl" not in slices:
        raise InputError(f"{path} is a zip archive without a checkpoint in it: unpack it")
    order = slices.get("byteorder")
    if order is not None and order.length < 10 and order.read().strip() != b"little":
        raise InputError(f"{path} was saved on a big-endian machine: save it on a common one")
    data = slices["data.pkl"]
    data.check()
    storages: dict[str, Storage | Stub] = {}

    def persistent(key: Any) -> Storage | Stub:
        if not isinstance(key, tuple) or len(key) != 5 or key[0] != "storage":
            raise DamagedPickle("an unknown kind of reference")
        _, kind, name, _, numel = key
        if not isinstance(name, str):
            raise DamagedPickle("a storage without a name")
        if name not in storages:
            storage = storage_of(kind, numel)
            if isinstance(storage, Storage):
                storage.data = slices.get(f"data/{name}")
                size = np.dtype(DTYPES[storage.dtype]).itemsize * storage.numel
                if storage.data is None or storage.data.length != size:
                    raise DamagedPickle(f"storage {name[:40]!r} is missing or has another size")
            storages[name] = storage
        return storages[name]

    file.seek(data.offset)
    reader = _reader(state, file, data.offset + data.length, persistent)
    root = reader.load()
    return Contents(
        path, "torch.save (zip)", root, "", state.size, tuple(sorted(reader.foreign)), state
    )


def _reader(
    state: FileState,
    file: BinaryIO,
    end: int,
    persistent: Callable[[Any], Any] | None = None,
) -> InertUnpickler:
    return InertUnpickler(
        file,
        end,
        builders={**TORCH_BUILDERS, **NUMPY_BUILDERS},
        persistent=persistent,
        place=lambda offset, length: FileSlice(state, offset, length),
    )


def _members(path: Path, state: FileState, file: BinaryIO) -> dict[str, FileSlice]:
    """The files in a torch archive by their names below its one folder."""
    try:
        with zipfile.ZipFile(_Careful(file, state.size)) as archive:  # type: ignore[arg-type]
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, EOFError):
        raise InputError(
            f"{path} is truncated or damaged (no directory at its end): fetch or save it again"
        ) from None
    slices: dict[str, FileSlice] = {}
    if any(re.fullmatch(r".*/(constants\.pkl|code/.*)", m.filename) for m in members):
        raise InputError(
            f"{path} is a TorchScript program, which is not opened: save its state_dict() instead"
        )
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise InputError(
                f"{path} is a compressed archive, which torch.save never writes: unpack it and "
                "name the checkpoint inside"
            )
        inner = member.filename.partition("/")[2] or member.filename
        if inner in slices:
            raise InputError(
                f"{path} is not a checkpoint: an archive with two files {ascii(inner[:60])}"
            )
        slices[inner] = _member(path, state, file, member)
    return slices


def _member(path: Path, state: FileState, file: BinaryIO, member: zipfile.ZipInfo) -> FileSlice:
    """Where a stored member's bytes lie, from its own local header."""
    file.seek(max(member.header_offset, 0))
    header = file.read(30)
    if member.header_offset < 0 or len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise InputError(f"{path} is truncated or damaged: fetch or save it again")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    offset = member.header_offset + 30 + name_length + extra_length
    if member.file_size < 0 or offset + member.file_size > state.size:
        raise InputError(f"{path} is truncated or damaged: fetch or save it again")
    return FileSlice(state, offset, member.file_size, member.CRC)


# torch.save before 1.6, and plain pickles ------------------------------------------------------


def _pickle_or_legacy(path: Path, state: FileState, file: BinaryIO) -> Contents:
    reader = _reader(state, file, state.size)
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
        if not isinstance(name, str):
            raise DamagedPickle("a storage without a name")
        storage = storages.setdefault(name, storage_of(kind, numel))
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

    reader = _reader(state, file, state.size, persistent)
    root = reader.load()
    keys = InertUnpickler(file, state.size).load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise DamagedPickle("no list of storages")
    for key in keys:
        storage = storages.get(key)
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
    """An eight-byte length, a json header, then the tensors' bytes without gap or overlap."""
    (length,) = struct.unpack("<Q", file.read(8))
    if length > MAX_HEADER:
        raise InputError(f"{path} is not a checkpoint: a header of {length} bytes")
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_no_twins)
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("metadata")
        root = {name: _safetensor(state, 8 + length, entry) for name, entry in header.items()}
        position = 0
        for first, last in sorted(tuple(entry["data_offsets"]) for entry in header.values()):
            if first != position or last < first:
                raise ValueError("a gap or an overlap")
            position = last
        if 8 + length + position != state.size:
            raise ValueError("bytes of no tensor")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path} is truncated or damaged: fetch or save it again") from None
    return Contents(path, "safetensors", root, "", state.size, (), state, metadata)


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A json object; a name that comes twice would hide a tensor."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name comes twice")
    return table


def _safetensor(state: FileState, start: int, entry: Any) -> TensorRef | Stub:
    shape = tuple(entry["shape"])
    first, last = entry["data_offsets"]
    if any(type(number) is not int or number < 0 for number in (first, last, *shape)):
        raise ValueError("numbers")
    if entry["dtype"] not in SAFETENSORS_DTYPES:
        return Stub(f"safetensors {str(entry['dtype'])[:20]}")
    dtype = SAFETENSORS_DTYPES[entry["dtype"]]
    if last - first != math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize:
        raise ValueError("size")
    place = FileSlice(state, start + first, last - first)

    def fetch() -> np.ndarray:
        return np.frombuffer(place.read(), dtype=DTYPES[dtype]).reshape(shape)

    return TensorRef(dtype, shape, fetch)
