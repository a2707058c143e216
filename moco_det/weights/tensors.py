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

from moco_det.weights.file_slices import FileSlice, LateText
from moco_det.weights.stubs import Buildable, Builder, DamagedPickle, Named, Stub

# numpy has no bfloat16: its bits are read as uint16 and widened to float32.
DTYPES = {
    "float32": "<f4",
    "float64": "<f8",
    "float16": "<f2",
    "bfloat16": "<u2",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "|i1",
    "uint8": "|u1",
    "bool": "|b1",
}
STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
MAX_TENSORS = 20_000  # two ResNet-152 and an optimizer have 3,000
FLOATING = frozenset(("float32", "float64", "float16", "bfloat16"))


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor that has not been read yet. `dtype` is a key of DTYPES."""

    dtype: str
    shape: tuple[int, ...]
    fetch: Callable[[], np.ndarray] = field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers as they are stored."""
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize

    def read(self) -> np.ndarray:
        """The numbers: float32 for every floating type, else the type they have."""
        array = self.fetch()
        if self.dtype == "bfloat16":
            wide = array.astype("<u4") << 16
            return wide.view("<f4")
        if self.dtype in FLOATING:
            with np.errstate(over="ignore"):  # a float64 beyond float32 is found by the proof
                return np.ascontiguousarray(array, dtype=np.float32).reshape(self.shape)
        return np.ascontiguousarray(array).reshape(self.shape)


def _natural(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (list, tuple)) or len(values) > 32:
        raise DamagedPickle("a shape that is not a list of numbers")
    if any(type(value) is not int or value < 0 for value in values):
        raise DamagedPickle("a shape that is not a list of numbers")
    return tuple(values)


# torch's storages -----------------------------------------------------------------------------


@dataclass(slots=True)
class Storage:
    """One flat piece of memory of a torch file. `data` is set once its place is known."""

    dtype: str
    numel: int
    data: FileSlice | None = None
    base: int = 0  # first element, for the views of very old files


def storage_of(kind: Any, numel: Any) -> Storage | Stub:
    """The storage that a persistent id describes; kinds without a numpy type stay stubs."""
    if not isinstance(kind, Named) or type(numel) is not int or numel < 0:
        raise DamagedPickle("an unknown kind of storage")
    dtype = STORAGES.get(kind.name)
    return Storage(dtype, numel) if dtype else Stub(str(kind))


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> TensorRef | Stub:
    if not isinstance(storage, Storage):
        return Stub("torch.Tensor")
    shape, steps = _natural(size), _natural(stride)
    if type(offset) is not int or offset < 0 or len(shape) != len(steps):
        raise DamagedPickle("a tensor with impossible strides")
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, steps, strict=True)) if count else 0
    if count and (last >= storage.numel or count > storage.numel):
        raise DamagedPickle("a tensor larger than its storage")

    def fetch() -> np.ndarray:
        if storage.data is None:
            raise DamagedPickle("a tensor's storage is missing")
        dtype = np.dtype(DTYPES[storage.dtype])
        if not count:
            return np.zeros(shape, dtype)
        start, size = storage.base + offset, last - offset + 1  # not all: a storage may hold many
        data = storage.data.read(start * dtype.itemsize, size * dtype.itemsize)
        view = np.lib.stride_tricks.as_strided(
            np.frombuffer(data, dtype), shape, [step * dtype.itemsize for step in steps]
        )
        return np.ascontiguousarray(view).reshape(shape)

    return TensorRef(storage.dtype, shape, fetch)


def _first(value: Any = None, *_: Any) -> Any:
    return value


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    rebuilds = ("_rebuild_tensor_v2", "_rebuild_tensor")
    if isinstance(function, Named) and function.name in rebuilds and isinstance(arguments, tuple):
        return _rebuild_tensor(*arguments)
    return Stub("torch.Tensor")


TORCH_BUILDERS: Mapping[tuple[str, str], Builder] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch.nn.parameter", "Parameter"): _first,
    ("torch", "Size"): lambda values=(), *_: _natural(values),
}


# numpy's arrays -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Dtype(Buildable):
    """numpy.dtype(code) and its BUILD state, of which only the byte order is believed."""

    code: str
    order: str = "<"

    def build(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.order = state[1]

    def name(self) -> str | None:
        """The key of DTYPES, or None for a type that no weight has."""
        if len(self.code) > 3 or self.order == ">" or self.code[:1] not in "fiub":
            return None
        try:
            name = np.dtype(self.code).name
        except TypeError:
            return None
        return name if name in DTYPES else None


@dataclass(slots=True)
class PickledArray(Buildable):
    """A numpy array inside a pickle: filled by its BUILD state."""

    shape: tuple[int, ...] = ()
    dtype: str | None = None
    fortran: bool = False
    data: bytes | FileSlice | LateText = b""

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise DamagedPickle("an array without contents")
        shape, dtype, fortran, data = state[-4:]
        self.fill(shape, dtype, bool(fortran), data)

    def fill(self, shape: Any, dtype: Any, fortran: bool, data: Any) -> None:
        name = dtype.name() if isinstance(dtype, _Dtype) else None
        if name is None:
            return  # objects, strings, records: not a weight
        if isinstance(data, str):  # Python 2's bytes
            data = data.encode("latin-1")
        sizes = _natural(shape)
        size = math.prod(sizes) * np.dtype(DTYPES[name]).itemsize
        if isinstance(data, LateText):  # up to six characters spell a byte
            fits = data.place.length // 6 <= size <= data.place.length
        elif isinstance(data, FileSlice):
            fits = data.length == size
        elif isinstance(data, bytes):
            fits = len(data) == size
        else:
            raise DamagedPickle("an array without contents")
        if not fits:
            raise DamagedPickle("an array whose shape and size differ")
        self.shape, self.dtype, self.fortran, self.data = sizes, name, fortran, data

    def reference(self) -> TensorRef | Stub:
        if self.dtype is None:
            return Stub("numpy.ndarray")
        return TensorRef(self.dtype, self.shape, self.fetch)

    def fetch(self) -> np.ndarray:
        flat = np.frombuffer(_contents(self.data), dtype=DTYPES[self.dtype or ""])
        if flat.size != math.prod(self.shape):
            raise DamagedPickle("an array whose shape and size differ")
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


def _contents(data: bytes | FileSlice | LateText) -> bytes | bytearray:
    if isinstance(data, FileSlice):
        return data.read()
    return data.encoded() if isinstance(data, LateText) else data


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> PickledArray:
    """How protocol 5 spells a contiguous array."""
    array = PickledArray()
    array.fill(shape, dtype, order == "F", data)
    return array


_NUMPY = {
    ("multiarray", "_reconstruct"): lambda *_: PickledArray(),
    ("multiarray", "scalar"): lambda *_: Stub("numpy scalar"),
    ("numeric", "_frombuffer"): _frombuffer,
}
NUMPY_BUILDERS: Mapping[tuple[str, str], Builder] = {
    **{
        (f"numpy.{core}.{module}", name): builder
        for core in ("core", "_core")  # numpy 1 and numpy 2
        for (module, name), builder in _NUMPY.items()
    },
    ("numpy", "dtype"): lambda code="", *_: _Dtype(code if isinstance(code, str) else ""),
}


def tensors_of(table: Mapping[Any, Any]) -> dict[str, TensorRef]:
    """The entries of a pickled dict that are tensors or arrays, by their keys.

    A key that is no text is spelled `[5]`: no format claims it, so it is left over by name.
    Raises DamagedPickle for more of them than any checkpoint has, and for unprintable names.
    """
    found: dict[str, TensorRef] = {}
    for key, value in table.items():
        if isinstance(value, PickledArray):
            value = value.reference()
        if isinstance(value, TensorRef):
            if not isinstance(key, str):
                key = f"[{key!r}]"  # a number or bytes: the reader keeps no other keys
            if not key.isprintable():
                raise DamagedPickle(f"a tensor is named {ascii(key[:60])}")
            found[key] = value
            if len(found) > MAX_TENSORS:
                raise DamagedPickle(f"more than {MAX_TENSORS} tensors")
    return found
