"""Tensors as descriptions: name, shape, and how to fetch the numbers when they are wanted.

A pickle only builds descriptions; whoever has checked the shape against a known architecture
calls `read`. So an absurd shape costs nothing, and optimizer state is never fetched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moco_det.weights.file_slices import FileSlice, TextSlice
from moco_det.weights.pickled_names import Buildable, Builder, DamagedFile, GlobalRef, Stub

# dtype -> numpy's code, torch's storage, safetensors' name. numpy has no bfloat16: its bits are
# read as uint16 and widened to float32.
_TYPES = {
    "float32": ("<f4", "FloatStorage", "F32"),
    "float64": ("<f8", "DoubleStorage", "F64"),
    "float16": ("<f2", "HalfStorage", "F16"),
    "bfloat16": ("<u2", "BFloat16Storage", "BF16"),
    "int64": ("<i8", "LongStorage", "I64"),
    "int32": ("<i4", "IntStorage", "I32"),
    "int16": ("<i2", "ShortStorage", "I16"),
    "int8": ("|i1", "CharStorage", "I8"),
    "uint8": ("|u1", "ByteStorage", "U8"),
    "bool": ("|b1", "BoolStorage", "BOOL"),
}
DTYPES = {name: np.dtype(code) for name, (code, _, _) in _TYPES.items()}
NUMPY_CODES = {d.str[1:]: name for name, d in DTYPES.items() if name != "bfloat16"}
STORAGES = {storage: name for name, (_, storage, _) in _TYPES.items()}
SAFETENSORS_DTYPES = {word: name for name, (_, _, word) in _TYPES.items()}
FLOATING = frozenset(("float32", "float64", "float16", "bfloat16"))
MAX_TENSORS = 20_000  # two ResNet-152 and an optimizer have 3,000


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor that has not been read yet. `dtype` is a key of DTYPES."""

    dtype: str
    shape: tuple[int, ...]
    fetch: Callable[[], np.ndarray] = field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers as they are stored."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def read(self) -> np.ndarray:
        """The numbers: float32 for every floating type, else the type they have."""
        array = self.fetch()
        if self.dtype == "bfloat16":
            array = (array.astype("<u4") << 16).view("<f4")
        dtype = np.float32 if self.dtype in FLOATING else array.dtype
        with np.errstate(over="ignore"):  # a float64 beyond float32 is found by the proof
            return np.ascontiguousarray(array, dtype=dtype).reshape(self.shape)


def _shape(values: Any) -> tuple[int, ...]:
    numbers = isinstance(values, (list, tuple)) and len(values) <= 32
    if not numbers or any(type(value) is not int or value < 0 for value in values):
        raise DamagedFile("a shape that is not a list of numbers")
    return tuple(values)


# torch's storages -----------------------------------------------------------------------------


@dataclass(slots=True)
class Storage:
    """One flat piece of memory of a torch file. `data` is set once its place is known."""

    dtype: str
    numel: int
    data: FileSlice | None = None
    base: int = 0  # first element, for the views of very old files

    @property
    def nbytes(self) -> int:
        return self.numel * DTYPES[self.dtype].itemsize


def storage_of(kind: Any, numel: Any) -> Storage | Stub:
    """The storage that a persistent id describes; kinds without a numpy type stay stubs."""
    if not isinstance(kind, GlobalRef) or type(numel) is not int or numel < 0:
        raise DamagedFile("an unknown kind of storage")
    dtype = STORAGES.get(kind.name.rpartition(".")[2])
    return Storage(dtype, numel) if dtype else Stub(kind.name)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> TensorRef | Stub:
    if not isinstance(storage, Storage):
        return Stub("torch.Tensor")
    shape, steps = _shape(size), _shape(stride)
    if type(offset) is not int or offset < 0 or len(shape) != len(steps):
        raise DamagedFile("a tensor with impossible strides")
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, steps, strict=True)) if count else 0
    if count and (last >= storage.numel or count > storage.numel):
        raise DamagedFile("a tensor larger than its storage")

    def fetch() -> np.ndarray:
        if storage.data is None:
            raise DamagedFile("a tensor's storage is missing")
        dtype = DTYPES[storage.dtype]
        if not count:
            return np.zeros(shape, dtype)
        start, size = storage.base + offset, last - offset + 1  # not all: a storage may hold many
        data = storage.data.read(start * dtype.itemsize, size * dtype.itemsize)
        strides = [step * dtype.itemsize for step in steps]
        return np.lib.stride_tricks.as_strided(np.frombuffer(data, dtype), shape, strides)

    return TensorRef(storage.dtype, shape, fetch)


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    rebuilds = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
    if isinstance(function, GlobalRef) and function.name in rebuilds:
        return _rebuild_tensor(*arguments[:4])
    return Stub("torch.Tensor")


def _first(value: Any = None, *_: Any) -> Any:
    return value


# numpy's arrays -------------------------------------------------------------------------------


@dataclass(slots=True)
class PickledDtype(Buildable):
    """numpy.dtype(code) and its BUILD state, of which only the byte order is believed."""

    code: str
    order: Any = "<"

    def build(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1:
            self.order = state[1]

    def name(self) -> str | None:
        """The key of DTYPES, or None for a type that no weight has."""
        return NUMPY_CODES.get(self.code) if self.order in ("<", "|", "=") else None


@dataclass(slots=True)
class StoredArray(Buildable):
    """An array that lies whole in one place; one inside a pickle is filled by its BUILD state."""

    shape: tuple[int, ...] = ()
    dtype: str | None = None
    fortran: bool = False
    data: bytes | FileSlice | TextSlice = b""

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise DamagedFile("an array without contents")
        self.fill(*state[-4:])

    def fill(self, shape: Any, dtype: Any, fortran: Any, data: Any) -> StoredArray:
        name = dtype.name() if isinstance(dtype, PickledDtype) else None
        if name is None:
            return self  # objects, strings, records: not a weight
        if isinstance(data, str):  # Python 2's bytes
            data = data.encode("latin-1")
        sizes = _shape(shape)
        size = math.prod(sizes) * DTYPES[name].itemsize
        if isinstance(data, TextSlice):  # up to six characters spell a byte
            fits = data.place.length // 6 <= size <= data.place.length
        elif isinstance(data, FileSlice):
            fits = data.length == size
        else:
            fits = isinstance(data, bytes) and len(data) == size
        if not fits:
            raise DamagedFile("an array whose shape and size differ")
        self.shape, self.dtype, self.fortran, self.data = sizes, name, bool(fortran), data
        return self

    def reference(self) -> TensorRef | Stub:
        if self.dtype is None:
            return Stub("numpy.ndarray")
        return TensorRef(self.dtype, self.shape, self.fetch)

    def fetch(self) -> np.ndarray:
        data = self.data if isinstance(self.data, bytes) else self.data.read()
        flat = np.frombuffer(data, dtype=DTYPES[self.dtype or ""])
        if flat.size != math.prod(self.shape):
            raise DamagedFile("an array whose shape and size differ")
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> StoredArray:
    """How protocol 5 spells a contiguous array."""
    return StoredArray().fill(shape, dtype, order == "F", data)


_NUMPY_BUILDERS: Mapping[str, Builder] = {
    "multiarray._reconstruct": lambda *_: StoredArray(),
    "multiarray.scalar": lambda *_: Stub("numpy scalar"),
    "numeric._frombuffer": _frombuffer,
}
TENSOR_BUILDERS: Mapping[str, Builder] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.nn.parameter.Parameter": _first,
    "torch.Size": lambda values=(), *_: _shape(values),
    "numpy.dtype": lambda code="", *_: PickledDtype(code if isinstance(code, str) else ""),
    **{f"numpy.core.{name}": build for name, build in _NUMPY_BUILDERS.items()},
    **{f"numpy._core.{name}": build for name, build in _NUMPY_BUILDERS.items()},  # numpy 2
}


def tensors_of(table: Mapping[Any, Any]) -> dict[str, TensorRef]:
    """The entries of a pickled dict that are tensors or arrays, by their keys.

    A key that is no text is spelled `[5]`: no format claims it, so it is left over by name.
    Raises DamagedFile for more of them than any checkpoint has, and for unprintable names.
    """
    found: dict[str, TensorRef] = {}
    for key, value in table.items():
        if isinstance(value, StoredArray):
            value = value.reference()
        if isinstance(value, TensorRef):
            if not isinstance(key, str):
                key = f"[{key!r}]"  # a number or bytes: the reader keeps no other keys
            if not key.isprintable():
                raise DamagedFile(f"a tensor is named {ascii(key[:60])}")
            found[key] = value
            if len(found) > MAX_TENSORS:
                raise DamagedFile(f"more than {MAX_TENSORS} tensors")
    return found
