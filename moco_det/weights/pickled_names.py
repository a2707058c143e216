"""What the names in a pickle become: references, stubs and plain containers, never imports."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from moco_det.weights.file_slices import FileSlice, TextSlice


class DamagedFile(Exception):
    """The file is of no known container, ends too early, or contradicts itself."""


class HostilePickle(Exception):
    """The stream names something that would run a program if it were opened in the usual way."""


@dataclass(frozen=True, slots=True)
class GlobalRef:
    """A global that a pickle refers to: its dotted name, never an import."""

    name: str


@dataclass(frozen=True, slots=True)
class Stub:
    """What stands where a foreign object was; it keeps the name and nothing else."""

    origin: str


class Buildable:
    """A builder's result that wants the pickle's BUILD state (arrays and dtypes do)."""

    __slots__ = ()

    def build(self, state: Any) -> None:
        raise NotImplementedError


Builder = Callable[..., Any]

# Checkpoints have no reason to name these. Nothing that a file names is ever run; but whoever finds
# such a file should be told that it was made to run something where it is opened in the usual way.
HOSTILE = re.compile(
    r"(os|posix|nt|subprocess|_posixsubprocess|sys|runpy|importlib|_frozen_importlib|imp|pkgutil|"
    r"zipimport|shutil|socket|ctypes|_ctypes|pty|popen2|webbrowser|codeop|asyncio|pydoc|ensurepip|"
    r"pip|urllib|http|ftplib|smtplib|telnetlib)\..*|"
    # a project may well have a folder of these names: only the standard module itself
    r"(code|commands|pdb|bdb|timeit|cProfile|profile|trace|doctest|requests)\.[^.]*|"
    r"(builtins|__builtin__)\.(eval|exec|execfile|compile|open|file|__import__|input|raw_input|"
    r"apply|breakpoint|globals|locals|vars|setattr|delattr)|"
    r"(pickle|_pickle|cPickle|dill|cloudpickle|joblib|marshal|shelve)\.(.*\.)?(loads?|open)|"
    r"(io|_io)\.(open|open_code|FileIO)|"
    r"types\.(CodeType|FunctionType|LambdaType)|"
    r"operator\.(attrgetter|methodcaller)|"
    # sparse tensors name _get_layout, which only looks a word up
    r"torch\.(load|(hub|ops|serialization(?!\._get_layout$)|jit|utils\.cpp_extension)\..*)|"
    r"numpy\.(load|fromfile|memmap|(f2py|distutils|testing)\..*)"
)


def global_ref(module: Any, name: Any) -> GlobalRef:
    """The reference to a global; raises HostilePickle for one that runs programs."""
    # before anything is made of them: the text of a nested tuple can be endless
    if not isinstance(module, str) or not isinstance(name, str):
        raise DamagedFile("a global without a name")
    full = f"{module}.{name}"
    if not full.isprintable() or len(full) > 500:
        raise DamagedFile("a global without a sensible name")
    if HOSTILE.fullmatch(full):
        raise HostilePickle(full)
    return GlobalRef(full)


def _encode(text: Any, encoding: Any = "utf-8") -> bytes | TextSlice:
    """_codecs.encode: how protocols 0 to 2 spell bytes."""
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise DamagedFile("bytes in an unknown encoding")
    return text if isinstance(text, TextSlice) else str.encode(text, encoding)


def _bytearray(data: Any = b"", *_: Any) -> Any:
    return data if isinstance(data, (bytes, FileSlice, TextSlice)) else b""


CONTAINERS: Mapping[str, Builder] = {
    "collections.defaultdict": lambda *_: {},
    "_codecs.encode": _encode,
    "__builtin__.bytearray": _bytearray,
    "builtins.bytearray": _bytearray,
}
# How Python spells "an instance of the class in the arguments".
CONSTRUCTORS = frozenset(
    f"{module}.{name}"
    for module in ("copyreg", "copy_reg")
    for name in ("_reconstructor", "__newobj__", "__newobj_ex__")
)
