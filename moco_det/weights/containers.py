"""From a path to its contents: torch files old and new, pickles, safetensors, numpy's npz.

Nothing in a file is ever executed, and every wrong kind of file is one clear line. A single reader
serves them all (`pickle_machine`), instead of `torch.load(weights_only=True)` plus a second one for
the many published files that it refuses because an argparse.Namespace lies beside the weights; a
test holds it against `weights_only=True` wherever that reads the file.
"""

from __future__ import annotations

import codecs
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
from moco_det.weights.file_slices import BLOCK, FileSlice, FileState, open_weights
from moco_det.weights.pickle_machine import InertUnpickler
from moco_det.weights.pickled_names import DamagedFile, GlobalRef, HostilePickle, Stub
from moco_det.weights.tensors import (
    DTYPES,
    NUMPY_CODES,
    SAFETENSORS_DTYPES,
    TENSOR_BUILDERS,
    Storage,
    StoredArray,
    TensorRef,
    storage_of,
)

MAX_FILE = 16 << 30  # a ResNet-152 with optimizer is 0.7 GB
MAX_HEADER = 8 << 20  # of safetensors; names and shapes take about 100 bytes per tensor
MAX_DIRECTORY = 8 << 20  # of a zip; likewise
MAX_NPY_HEADER = 16 << 10  # numpy itself reads 10,000 bytes of one
NPY_HEADER = re.compile(
    rb"\x93NUMPY(?:\x01\0..|[\x02\x03]\0....)\{'descr': '[<|](?P<dtype>%s)', "
    rb"'fortran_order': (?P<fortran>True|False), 'shape': \((?P<shape>[\dL, ]{0,400})\), \}"
    % "|".join(NUMPY_CODES).encode(),
    re.DOTALL,
)
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.save before 1.6 starts with this pickled number
LEGACY_MAGIC_TEXT = b"L%dL\n" % LEGACY_MAGIC  # by protocol 0
BIG_ENDIAN = "was saved on a big-endian machine: save it on a common one"


@dataclass
class Contents:
    """What a file holds, tensors as descriptions. `kind` says in words how it was stored."""

    state: FileState
    kind: str
    root: Any
    foreign: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""

    @property
    def path(self) -> Path:
        return self.state.path

    @property
    def entries(self) -> dict[Any, Any]:
        """The root's, where it is a dict."""
        return self.root if isinstance(self.root, dict) else {}


def read_contents(path: str | Path) -> Contents:
    """Everything in a checkpoint file, without running any of it.

    Raises InputError, one line, for whatever is not a readable checkpoint.
    """
    file, state = open_weights(Path(path))
    with input_errors(state.path), file:
        if state.size == 0:
            raise InputError(f"{path} is empty (0 bytes): fetch or save it again")
        if state.size > MAX_FILE:
            raise InputError(
                f"{path} has {state.size >> 30} GiB: larger than any ResNet checkpoint "
                f"(at most {MAX_FILE >> 30} GiB are read)"
            )
        contents = _dispatch(state, file)
        contents.sha256 = sha256_of(file)
    state.check()
    return contents


@contextmanager
def input_errors(path: Path) -> Iterator[None]:
    """Turn what reading found wrong into an InputError that names the file."""
    try:
        yield
    except HostilePickle as error:
        raise InputError(
            f"{path} would run {error} if it were opened in the usual way: nothing was run; "
            "do not use this file"
        ) from None
    except DamagedFile as error:
        raise InputError(
            f"{path} is not a checkpoint, or is truncated or damaged ({error}): "
            "fetch or save it again"
        ) from None
    except UnknownArchitecture as error:
        raise InputError(f"{path}: unsupported architecture: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def sha256_of(file: BinaryIO) -> str:
    """sha256 (hex) of an open file, from its start."""
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _dispatch(state: FileState, file: BinaryIO) -> Contents:
    start = file.read(512)
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        return _torch_zip(state, file)
    if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < state.size:
        return _safetensors(state, file)
    other = lookalike(start)
    suffix = state.path.suffix
    pickled = start[:1] == b"\x80" or suffix == ".pkl" or start.startswith(LEGACY_MAGIC_TEXT)
    if pickled and other is None:
        return _pickle_or_legacy(state, file)
    raise InputError(f"{state.path} {other or NO_CHECKPOINT}")


# Files that are plainly something else ----------------------------------------------------------

NO_CHECKPOINT = (
    "is not a checkpoint: its first bytes are none of torch's, pickle's, numpy's or safetensors': "
    "name another file, or fetch it again"
)


def lookalike(start: bytes) -> str | None:
    """What else than a checkpoint a file is by its first 512 bytes, with the cure."""
    text = start.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if text.startswith((b"<!", b"<html", b"<head", b"<?xml")):
        return "is a web page, not a checkpoint: the download failed, fetch the file itself again"
    if text.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the weights: run `git lfs pull`"
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"Rar!", b"7z\xbc\xaf")):
        return "is a compressed archive: unpack it and name the checkpoint inside"
    if start[257:262] == b"ustar":
        return (
            "is a tar archive: unpack it and name the checkpoint inside (a file that torch 0.1 "
            "saved as tar has to be loaded and saved by torch once)"
        )
    if start.startswith(b"\x89HDF"):
        return "is an HDF5 file (Keras?): save the network's state_dict with torch"
    return None


# torch.save since 1.6: a zip of uncompressed members -------------------------------------------


class BoundedFile:
    """A file for zipfile, which would take a directory of any size into memory."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        count = self.size - self.file.tell() if count < 0 else count
        if not 0 <= count <= MAX_DIRECTORY:
            raise zipfile.BadZipFile("an absurd directory")
        return self.file.read(count)


def _torch_zip(state: FileState, file: BinaryIO) -> Contents:
    slices = _members(state, file)
    if slices and all(name.endswith(".npy") for name in slices):
        root = {name.removesuffix(".npy"): _npy(part) for name, part in slices.items()}
        return Contents(state, "npz", root)
    if "data.pkl" not in slices:
        raise InputError(f"{state.path} is a zip archive without a checkpoint in it: unpack it")
    order = slices.get("byteorder")
    if order is not None and order.length < 10 and order.read().strip() != b"little":
        raise InputError(f"{state.path} {BIG_ENDIAN}")
    data = slices["data.pkl"]
    data.check()
    storages: dict[str, Storage | Stub] = {}

    def persistent(key: Any) -> Storage | Stub:
        kind, name, _, numel = _storage_key(key, 5)
        if name not in storages:
            storage = storages[name] = storage_of(kind, numel)
            if isinstance(storage, Storage):
                storage.data = slices.get(f"data/{name}")
                if storage.data is None or storage.data.length != storage.nbytes:
                    raise DamagedFile(f"storage {name[:40]!r} is missing or has another size")
        return storages[name]

    file.seek(data.offset)
    end = data.offset + data.length
    reader = InertUnpickler(file, state, end, TENSOR_BUILDERS, persistent)
    return Contents(state, "torch.save (zip)", reader.load(), tuple(sorted(reader.foreign)))


def _storage_key(key: Any, length: int) -> tuple[Any, ...]:
    """What follows the word in a storage's persistent id: kind, name, device, size and more."""
    if not isinstance(key, tuple) or len(key) != length or key[0] != "storage":
        raise DamagedFile("an unknown kind of reference")
    if not isinstance(key[2], str):
        raise DamagedFile("a storage without a name")
    return key[1:]


def _members(state: FileState, file: BinaryIO) -> dict[str, FileSlice]:
    """The files in a torch archive by their names below its one folder."""
    try:
        with zipfile.ZipFile(BoundedFile(file, state.size)) as archive:  # type: ignore[arg-type]
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, EOFError):
        raise DamagedFile("no directory at its end") from None
    slices: dict[str, FileSlice] = {}
    if any(re.fullmatch(r".*/(constants\.pkl|code/.*)", m.filename) for m in members):
        raise InputError(
            f"{state.path} is a TorchScript program, which is not opened: "
            "save its state_dict() instead"
        )
    for member in members:
        npy = member.filename.endswith(".npy")
        if npy and member.compress_type == zipfile.ZIP_DEFLATED:
            raise InputError(
                f"{state.path} is a compressed npz: save it with numpy.savez, not savez_compressed"
            )
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise InputError(
                f"{state.path} is a compressed archive, which torch.save never writes: unpack it "
                "and name the checkpoint inside"
            )
        inner = member.filename if npy else member.filename.partition("/")[2] or member.filename
        if inner in slices:
            raise DamagedFile(f"an archive with two files {ascii(inner[:60])}")
        slices[inner] = _member(state, file, member)
    return slices


def _member(state: FileState, file: BinaryIO, member: zipfile.ZipInfo) -> FileSlice:
    """Where a stored member's bytes lie, from its own local header."""
    file.seek(max(member.header_offset, 0))
    header = file.read(30)
    if member.header_offset < 0 or len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise DamagedFile("a member without its header")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    offset = member.header_offset + 30 + name_length + extra_length
    if member.file_size < 0 or offset + member.file_size > state.size:
        raise DamagedFile("the file ends too early")
    return FileSlice(state, offset, member.file_size, member.CRC)


def _npy(member: FileSlice) -> TensorRef | Stub:
    """An array of an npz: a text header as numpy writes it, then its bytes."""
    start = bytes(member.read(0, min(member.length, MAX_NPY_HEADER)))
    found = NPY_HEADER.match(start)
    if found is None:
        if start.startswith(b"\x93NUMPY"):
            return Stub("numpy.ndarray")  # records, and what else is no table of numbers
        raise DamagedFile("an npz with a broken header")
    dtype = np.dtype(found["dtype"].decode())
    shape = tuple(map(int, re.findall(rb"\d{1,18}", found["shape"])))
    width = 2 if start[6] == 1 else 4
    offset = 8 + width + int.from_bytes(start[8 : 8 + width], "little")
    size = math.prod(shape) * dtype.itemsize
    if len(shape) > 32 or offset + size != member.length:
        raise DamagedFile("an array whose shape and size differ")

    def fetch() -> np.ndarray:
        flat = np.frombuffer(member.read(offset, size), dtype)
        return flat.reshape(shape, order="F" if found["fortran"] == b"True" else "C")

    return TensorRef(NUMPY_CODES[dtype.str[1:]], shape, fetch)


# torch.save before 1.6, and plain pickles ------------------------------------------------------


def _pickle_or_legacy(state: FileState, file: BinaryIO) -> Contents:
    reader = InertUnpickler(file, state, state.size, TENSOR_BUILDERS)
    root = reader.load()
    if root == LEGACY_MAGIC and type(root) is int:
        return _torch_legacy(state, file)
    return Contents(state, "pickle", root, tuple(sorted(reader.foreign)))


def _torch_legacy(state: FileState, file: BinaryIO) -> Contents:
    """Pickles one after another (version, machine, object, keys), then the storages' bytes."""

    def unpickler(persistent: Callable[[Any], Any] | None = None) -> InertUnpickler:
        return InertUnpickler(file, state, state.size, TENSOR_BUILDERS, persistent)

    if unpickler().load() != 1001:
        raise DamagedFile("an unknown version of torch.save")
    machine = unpickler().load()
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise InputError(f"{state.path} {BIG_ENDIAN}")
    storages: dict[str, Storage | Stub] = {}
    views: list[tuple[Storage, Storage]] = []

    def persistent(key: Any) -> Any:
        if isinstance(key, tuple) and key and key[0] == "module":
            return key[1] if len(key) > 1 and isinstance(key[1], GlobalRef) else Stub("module")
        kind, name, _, numel, view = _storage_key(key, 6)
        storage = storages.setdefault(name, storage_of(kind, numel))
        if view is None or not isinstance(storage, Storage):
            return storage
        _, base, length = view
        if type(base) is not int or type(length) is not int or base < 0 or length < 0:
            raise DamagedFile("an unknown kind of view")
        if base + length > storage.numel:
            raise DamagedFile("a view larger than its storage")
        part = Storage(storage.dtype, length, base=base)
        views.append((part, storage))
        return part

    reader = unpickler(persistent)
    root = reader.load()
    keys = unpickler().load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise DamagedFile("no list of storages")
    for key in keys:
        storage = storages.get(key)
        if not isinstance(storage, Storage):
            raise DamagedFile("storages of an unsupported type")
        numel, offset = int.from_bytes(file.read(8), "little", signed=True), file.tell()
        if numel != storage.numel or offset + storage.nbytes > state.size:
            raise DamagedFile("the file ends too early, or a storage has another size")
        storage.data = FileSlice(state, offset, storage.nbytes)
        file.seek(storage.nbytes, io.SEEK_CUR)
    for part, storage in views:
        part.data = storage.data
    return Contents(state, "torch.save (before 1.6)", root, tuple(sorted(reader.foreign)))


# safetensors -----------------------------------------------------------------------------------


def _safetensors(state: FileState, file: BinaryIO) -> Contents:
    """An eight-byte length, a json header, then the tensors' bytes without gap or overlap."""
    (length,) = struct.unpack("<Q", file.read(8))
    if length > MAX_HEADER:
        raise DamagedFile(f"a header of {length} bytes")
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_no_twins)
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("metadata that is no text")
        root = {name: _safetensor(state, 8 + length, entry) for name, entry in header.items()}
        position = 0
        for first, last in sorted(tuple(entry["data_offsets"]) for entry in header.values()):
            if first != position or last < first:
                raise ValueError("a gap or an overlap")
            position = last
        if 8 + length + position != state.size:
            raise ValueError("bytes of no tensor")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedFile("a broken header") from None
    return Contents(state, "safetensors", root, (), metadata)


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
    if last - first != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError("size")
    place = FileSlice(state, start + first, last - first)
    return StoredArray(shape, dtype, data=place).reference()
