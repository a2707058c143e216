"""What a pickle's foreign names become, and the errors of reading one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class DamagedPickle(Exception):
    """The stream is not a pickle, ends too early, or contradicts itself."""


class HostilePickle(Exception):
    """The stream names something that would run a program if it were opened in the usual way."""


@dataclass(frozen=True, slots=True)
class Named:
    """A global that a pickle refers to; two strings, never an import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


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
