"""A pickle reader in which no instruction can call anything.

Python's own unpickler runs whatever a file names. Here a file's globals are never imported: each
stays a `Named` pair of strings, and "call it" either finds a row in the table of builders that the
caller handed in (plain dicts, tensors and arrays as descriptions) or leaves an inert `Stub`.
Sizes are checked against what the file still holds before anything is allocated.
"""

from __future__ import annotations

import codecs
import pickle as op
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

MAX_OPERATIONS = 5_000_000  # a ResNet-152 with its optimizer needs about 100,000
MAX_NUMBER_TEXT = 4_000  # digits of a protocol 0 number; int() is quadratic beyond


class DamagedPickle(Exception):
    """The stream is not a pickle, ends too early, or contradicts itself."""


class HostilePickle(Exception):
    """The stream names something that would run a program if it were opened in the usual way."""


@dataclass(frozen=True)
class Named:
    """A global that a pickle refers to; two strings, never an import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Stub:
    """What stands where a foreign object was; it keeps the name and nothing else."""

    origin: str


class Buildable:
    """A builder's result that wants the pickle's BUILD state (arrays and dtypes do)."""

    def build(self, state: Any) -> None:
        raise NotImplementedError


Builder = Callable[..., Any]

# Checkpoints have no reason to name these; a file that does was made to run something.
HOSTILE_MODULES = re.compile(
    r"(os|posix|nt|subprocess|sys|runpy|importlib|shutil|socket|ctypes|pty|commands|popen2|"
    r"webbrowser|code|codeop|pdb|bdb|timeit|cProfile|profile|trace|doctest|asyncio)(\..*)?"
)
HOSTILE_BUILTINS = re.compile(
    r"(builtins|__builtin__)\.(eval|exec|execfile|compile|open|__import__|input|apply|breakpoint)"
)


MARK = object()  # where a list of arguments starts on the stack


def _plain_dict(pairs: Any = (), *_: Any) -> dict[Any, Any]:
    """OrderedDict() or OrderedDict([(key, value), ...]) as a dict."""
    items: dict[Any, Any] = {}
    if isinstance(pairs, list):
        for pair in pairs:
            if isinstance(pair, (list, tuple)) and len(pair) == 2:
                _set_item(items, pair[0], pair[1])
    return items


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    """_codecs.encode: how protocol 2 spells bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise DamagedPickle("bytes in an unknown encoding")
    return text.encode(encoding)


BUILDERS: Mapping[tuple[str, str], Builder] = {
    ("collections", "OrderedDict"): _plain_dict,
    ("collections", "defaultdict"): lambda *_: {},
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytearray"): lambda *a: a[0] if a and isinstance(a[0], bytes) else b"",
    ("builtins", "bytearray"): lambda *a: a[0] if a and isinstance(a[0], bytes) else b"",
}


def _set_item(target: Any, key: Any, value: Any) -> None:
    # Only scalar keys: a nested tuple as a key can make hash() run for ever.
    if isinstance(target, dict) and isinstance(key, (str, bytes, int, float)):
        target[key] = value


class InertUnpickler:
    """Reads one pickle from `file`, which must not be read beyond the byte `end`.

    `builders` maps (module, name) to a function of the pickled arguments; `persistent` receives
    persistent ids. Afterwards `foreign` holds the names that were met and left as stubs.
    """

    def __init__(
        self,
        file: BinaryIO,
        end: int,
        *,
        builders: Mapping[tuple[str, str], Builder] | None = None,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.file = file
        self.end = end
        self.builders = {**BUILDERS, **(builders or {})}
        self.persistent = persistent
        self.foreign: set[str] = set()
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, count: int) -> bytes:
        if count < 0 or count > self.end - self.file.tell():
            raise DamagedPickle("the file ends too early")
        data = self.file.read(count)
        if len(data) != count:
            raise DamagedPickle("the file ends too early")
        return data

    def line(self) -> bytes:
        text = self.file.readline(self.end - self.file.tell())
        if not text.endswith(b"\n"):
            raise DamagedPickle("the file ends too early")
        return text[:-1].rstrip(b"\r")

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.read(struct.calcsize(layout)))[0]

    def text_number(self) -> int:
        text = self.line()
        if len(text) > MAX_NUMBER_TEXT:
            raise DamagedPickle("an absurdly long number")
        return int(text.rstrip(b"L"))

    def pop_mark(self) -> list[Any]:
        items: list[Any] = []
        while True:
            item = self.stack.pop()
            if item is MARK:
                items.reverse()
                return items
            items.append(item)

    def load(self) -> Any:
        """The pickled object. Raises DamagedPickle or HostilePickle."""
        try:
            for _ in range(MAX_OPERATIONS):
                code = self.read(1)
                if code == op.STOP:
                    return self.stack.pop()
                action = ACTIONS.get(code)
                if action is None:
                    raise DamagedPickle(f"unknown instruction {code!r}")
                action(self)
        except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedPickle(f"contradictory contents ({type(error).__name__})") from error
        except (struct.error, OverflowError, MemoryError, RecursionError) as error:
            raise DamagedPickle(f"impossible sizes ({type(error).__name__})") from error
        raise DamagedPickle(f"more than {MAX_OPERATIONS} instructions")

    def name(self, module: Any, name: Any) -> Named:
        named = Named(module, name)
        if not str(named).isprintable() or len(str(named)) > 500:
            raise DamagedPickle("a global without a sensible name")
        if HOSTILE_MODULES.fullmatch(module) or HOSTILE_BUILTINS.fullmatch(str(named)):
            raise HostilePickle(str(named))
        return named

    def call(self, target: Any, arguments: Any) -> Any:
        if not isinstance(target, Named):
            return Stub("an object made by a foreign object")
        builder = self.builders.get((target.module, target.name))
        if builder is None:
            self.foreign.add(str(target))
            return Stub(str(target))
        return builder(*(arguments if isinstance(arguments, (list, tuple)) else ()))


def _push(make: Callable[[InertUnpickler], Any]) -> Callable[[InertUnpickler], None]:
    def action(u: InertUnpickler) -> None:
        u.stack.append(make(u))

    return action


def _protocol(u: InertUnpickler) -> None:
    if u.number("B") > 5:
        raise DamagedPickle("a pickle protocol beyond 5")


def _frozenset(u: InertUnpickler) -> Stub:
    u.pop_mark()
    return Stub("frozenset")


def _put(index: Callable[[InertUnpickler], int]) -> Callable[[InertUnpickler], None]:
    def action(u: InertUnpickler) -> None:
        u.memo[index(u)] = u.stack[-1]

    return action


def _text(layout: str) -> Callable[[InertUnpickler], str]:
    return lambda u: str(u.read(u.number(layout)), "utf-8", "surrogatepass")


def _old_text(layout: str) -> Callable[[InertUnpickler], str]:
    # Python 2's str: latin-1, so that array bytes survive (numpy's and detectron2's convention)
    return lambda u: str(u.read(u.number(layout)), "latin-1")


def _bytes(layout: str) -> Callable[[InertUnpickler], bytes]:
    return lambda u: u.read(u.number(layout))


def _quoted(u: InertUnpickler) -> str:
    line = u.line()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise DamagedPickle("a string without quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin-1")  # type: ignore[attr-defined]


def _int_line(u: InertUnpickler) -> int | bool:
    before = u.file.tell()
    value = u.text_number()
    if u.file.tell() - before == 3 and value in (0, 1):  # "I00\n" and "I01\n" spell booleans
        return bool(value)
    return value


def _tuple_of(count: int) -> Callable[[InertUnpickler], None]:
    def action(u: InertUnpickler) -> None:
        if len(u.stack) < count:
            raise DamagedPickle("an empty stack")
        u.stack[-count:] = [tuple(u.stack[-count:])]

    return action


def _append(u: InertUnpickler) -> None:
    value = u.stack.pop()
    if isinstance(u.stack[-1], list):
        u.stack[-1].append(value)


def _appends(u: InertUnpickler) -> None:
    values = u.pop_mark()
    if isinstance(u.stack[-1], list):
        u.stack[-1].extend(values)


def _setitem(u: InertUnpickler) -> None:
    value, key = u.stack.pop(), u.stack.pop()
    _set_item(u.stack[-1], key, value)


def _fill(target: Any, items: list[Any]) -> Any:
    if len(items) % 2:
        raise DamagedPickle("a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        _set_item(target, key, value)
    return target


def _setitems(u: InertUnpickler) -> None:
    items = u.pop_mark()
    _fill(u.stack[-1], items)


def _additems(u: InertUnpickler) -> None:
    u.pop_mark()  # what a set holds is never looked at


def _reduce(u: InertUnpickler) -> None:
    arguments, target = u.stack.pop(), u.stack.pop()
    u.stack.append(u.call(target, arguments))


def _newobj_ex(u: InertUnpickler) -> None:
    u.stack.pop()
    _reduce(u)


def _build(u: InertUnpickler) -> None:
    state = u.stack.pop()
    if isinstance(u.stack[-1], Buildable):
        u.stack[-1].build(state)


def _inst(u: InertUnpickler) -> None:
    named = u.name(u.line().decode("utf-8"), u.line().decode("utf-8"))
    u.stack.append(u.call(named, u.pop_mark()))


def _obj(u: InertUnpickler) -> None:
    items = u.pop_mark()
    u.stack.append(u.call(items[0], items[1:]))


def _stack_global(u: InertUnpickler) -> None:
    name, module = u.stack.pop(), u.stack.pop()
    u.stack.append(u.name(module, name))


def _persid(u: InertUnpickler) -> None:
    u.stack.append(u.line().decode("latin-1"))
    _binpersid(u)


def _binpersid(u: InertUnpickler) -> None:
    if u.persistent is None:
        raise DamagedPickle("a reference to a storage, but no storages")
    u.stack.append(u.persistent(u.stack.pop()))


def _long(layout: str) -> Callable[[InertUnpickler], int]:
    return lambda u: int.from_bytes(u.read(u.number(layout)), "little", signed=True)


ACTIONS: Mapping[bytes, Callable[[InertUnpickler], Any]] = {
    op.PROTO: _protocol,
    op.FRAME: lambda u: u.number("<Q"),
    op.MARK: _push(lambda u: MARK),
    op.POP: lambda u: u.stack.pop(),
    op.POP_MARK: lambda u: u.pop_mark(),
    op.DUP: _push(lambda u: u.stack[-1]),
    op.NONE: _push(lambda u: None),
    op.NEWTRUE: _push(lambda u: True),
    op.NEWFALSE: _push(lambda u: False),
    op.INT: _push(_int_line),
    op.LONG: _push(lambda u: u.text_number()),
    op.BININT: _push(lambda u: u.number("<i")),
    op.BININT1: _push(lambda u: u.number("B")),
    op.BININT2: _push(lambda u: u.number("<H")),
    op.LONG1: _push(_long("B")),
    op.LONG4: _push(_long("<i")),
    op.FLOAT: _push(lambda u: float(u.line())),
    op.BINFLOAT: _push(lambda u: u.number(">d")),
    op.STRING: _push(_quoted),
    op.BINSTRING: _push(_old_text("<i")),
    op.SHORT_BINSTRING: _push(_old_text("B")),
    op.BINBYTES: _push(_bytes("<I")),
    op.SHORT_BINBYTES: _push(_bytes("B")),
    op.BINBYTES8: _push(_bytes("<Q")),
    op.BYTEARRAY8: _push(_bytes("<Q")),
    op.UNICODE: _push(lambda u: str(u.line(), "raw-unicode-escape")),
    op.BINUNICODE: _push(_text("<I")),
    op.SHORT_BINUNICODE: _push(_text("B")),
    op.BINUNICODE8: _push(_text("<Q")),
    op.EMPTY_LIST: _push(lambda u: []),
    op.EMPTY_TUPLE: _push(lambda u: ()),
    op.EMPTY_DICT: _push(lambda u: {}),
    op.EMPTY_SET: _push(lambda u: Stub("set")),
    op.FROZENSET: _push(_frozenset),
    op.LIST: _push(lambda u: u.pop_mark()),
    op.TUPLE: _push(lambda u: tuple(u.pop_mark())),
    op.DICT: _push(lambda u: _fill({}, u.pop_mark())),
    op.TUPLE1: _tuple_of(1),
    op.TUPLE2: _tuple_of(2),
    op.TUPLE3: _tuple_of(3),
    op.APPEND: _append,
    op.APPENDS: _appends,
    op.SETITEM: _setitem,
    op.SETITEMS: _setitems,
    op.ADDITEMS: _additems,
    op.GET: _push(lambda u: u.memo[u.text_number()]),
    op.BINGET: _push(lambda u: u.memo[u.number("B")]),
    op.LONG_BINGET: _push(lambda u: u.memo[u.number("<I")]),
    op.PUT: _put(lambda u: u.text_number()),
    op.BINPUT: _put(lambda u: u.number("B")),
    op.LONG_BINPUT: _put(lambda u: u.number("<I")),
    op.MEMOIZE: _put(lambda u: len(u.memo)),
    op.GLOBAL: _push(lambda u: u.name(u.line().decode("utf-8"), u.line().decode("utf-8"))),
    op.STACK_GLOBAL: _stack_global,
    op.INST: _inst,
    op.OBJ: _obj,
    op.REDUCE: _reduce,
    op.NEWOBJ: _reduce,
    op.NEWOBJ_EX: _newobj_ex,
    op.BUILD: _build,
    op.PERSID: _persid,
    op.BINPERSID: _binpersid,
    op.EXT1: _push(lambda u: Stub(f"extension {u.number('B')}")),
    op.EXT2: _push(lambda u: Stub(f"extension {u.number('<H')}")),
    op.EXT4: _push(lambda u: Stub(f"extension {u.number('<i')}")),
}
