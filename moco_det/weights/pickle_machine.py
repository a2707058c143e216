"""A pickle reader in which no instruction can call anything.

Python's own unpickler runs whatever a file names. Here a file's globals are never imported: each
stays a `GlobalRef`, and "call it" either finds a row in the table of builders that the caller
handed in (plain dicts, tensors and arrays as descriptions) or leaves an inert `Stub`. Sizes are
checked against what the file still holds before anything is allocated, long strings stay in the
file, and no instruction makes more than it costs.
"""

from __future__ import annotations

import codecs
import io
import pickle as op
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from moco_det.weights.file_slices import FileSlice, FileState, TextSlice
from moco_det.weights.pickled_names import (
    CONSTRUCTORS,
    CONTAINERS,
    Buildable,
    Builder,
    DamagedFile,
    GlobalRef,
    Stub,
    global_ref,
)

MAX_OPERATIONS = 2_000_000  # a ResNet-152 with its optimizer needs about 100,000
CALL_COST = 20  # operations that a call counts for: what it makes is larger than a number
LONG_TEXT = 1024  # bytes; longer texts are no names and stay in the file
MAX_TEXT = 64 << 20  # bytes of all shorter texts together
MAX_LINE = 64 << 20  # bytes of a protocol 0 string; the largest tensor of the table has 38 MB
MAX_NUMBER = 1_000  # bytes or digits of a number: str() of a longer one is refused by Python
MAX_FOREIGN = 1_000  # kinds of foreign objects
MAX_INDEX = 1 << 60  # beyond it, numbers can be chosen such that a dict takes for ever
MARK = object()  # where a list of arguments starts on the stack


class InertUnpickler:
    """Stack, memo and limits for one pickle in `file`, not read beyond the byte `end`.

    `builders` maps dotted names to functions of the pickled arguments; `persistent` receives
    persistent ids. Afterwards `foreign` holds the names that were met and left as stubs.
    """

    def __init__(
        self,
        file: BinaryIO,
        state: FileState,
        end: int,
        builders: Mapping[str, Builder],
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.file, self.state, self.end = file, state, end
        self.position = file.tell()  # kept here: asking the file is a system call each time
        self.builders = {**CONTAINERS, **builders}
        self.persistent = persistent
        self.foreign: set[str] = set()
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.budget = MAX_OPERATIONS
        self.text_left = MAX_TEXT
        self.stubs: dict[str, Stub] = {}

    def load(self) -> Any:
        """The pickled object. Raises DamagedFile or HostilePickle."""
        try:
            while True:
                self.spend(1)
                code = self.read(1)
                if code == op.STOP:
                    return self.stack.pop()
                if code not in ACTIONS:
                    raise DamagedFile(f"unknown instruction {code!r}")
                ACTIONS[code](self)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise DamagedFile(f"contradictory contents ({type(error).__name__})") from error
        except (MemoryError, RecursionError) as error:
            raise DamagedFile(f"impossible sizes ({type(error).__name__})") from error

    def read(self, count: int) -> bytes:
        data = self.file.read(count) if 0 <= count <= self.end - self.position else b""
        if len(data) != count:
            raise DamagedFile("the file ends too early")
        self.position += count
        return data

    def line(self) -> bytes:
        text = self.file.readline(min(self.end - self.position, MAX_LINE))
        if not text.endswith(b"\n"):
            raise DamagedFile("the file ends too early, or in an endless line")
        self.position += len(text)
        return text[:-1].rstrip(b"\r")

    def chunk(self, count: int) -> bytes | FileSlice:
        """The next bytes: themselves, or where they lie if they are many."""
        if count <= LONG_TEXT:
            self.keep(count)
            return self.read(count)
        if count > self.end - self.position:
            raise DamagedFile("the file ends too early")
        place = FileSlice(self.state, self.position, count)
        self.file.seek(count, io.SEEK_CUR)
        self.position += count
        return place

    def keep(self, count: int) -> None:
        self.text_left -= count
        if self.text_left < 0:
            raise DamagedFile(f"more than {MAX_TEXT >> 20} MiB of text")

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.read(struct.calcsize(layout)))[0]

    def text_number(self) -> int:
        text = self.line()
        if len(text) > MAX_NUMBER:
            raise DamagedFile("an absurdly long number")
        return int(text.rstrip(b"L"))

    def index(self) -> int:
        """A place in the memo, as protocol 0 spells it."""
        number = self.text_number()
        if not 0 <= number < MAX_INDEX:
            raise DamagedFile("an absurd place in the memo")
        return number

    def pop_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not MARK:
            items.append(item)
        return items[::-1]

    def spend(self, cost: int) -> None:
        self.budget -= cost
        if self.budget < 0:
            raise DamagedFile(f"more than {MAX_OPERATIONS} instructions")

    def call(self, target: Any, arguments: Any) -> Any:
        given = arguments if isinstance(arguments, (list, tuple)) else ()
        self.spend(CALL_COST + len(given))
        if not isinstance(target, GlobalRef):
            return self.stub("an object made by a foreign object")
        if target.name == "collections.OrderedDict":
            return self.plain_dict(*given[:1])
        if target.name in self.builders:
            return self.builders[target.name](*given)
        if target.name in CONSTRUCTORS and given and isinstance(given[0], GlobalRef):
            target = given[0]
        self.foreign.add(target.name)
        if len(self.foreign) > MAX_FOREIGN:
            raise DamagedFile(f"more than {MAX_FOREIGN} kinds of foreign objects")
        return self.stub(target.name)

    def stub(self, origin: str) -> Stub:
        return self.stubs.setdefault(origin, Stub(origin))

    def plain_dict(self, pairs: Any = ()) -> dict[Any, Any]:
        """OrderedDict() or OrderedDict([(key, value), ...]) as a dict."""
        items: dict[Any, Any] = {}
        if isinstance(pairs, list):
            self.spend(len(pairs))  # one list may be handed in again and again
            for pair in pairs:
                if isinstance(pair, (list, tuple)) and len(pair) == 2:
                    set_item(items, *pair)
        return items


# The instructions -------------------------------------------------------------------------------

Action = Callable[[InertUnpickler], Any]


def set_item(target: Any, key: Any, value: Any) -> None:
    # Only scalar keys: a nested tuple as a key can make hash() run for ever, as can huge numbers.
    if not isinstance(target, dict) or not isinstance(key, (str, bytes, int, float)):
        return
    if not isinstance(key, int) or abs(key) < MAX_INDEX:
        target[key] = value


def _push(make: Action) -> Action:
    return lambda u: u.stack.append(make(u))


def _put(index: Callable[[InertUnpickler], int]) -> Action:
    return lambda u: u.memo.__setitem__(index(u), u.stack[-1])


def _protocol(u: InertUnpickler) -> None:
    if u.number("B") > 5:
        raise DamagedFile("a pickle protocol beyond 5")


def _text(layout: str) -> Action:
    def make(u: InertUnpickler) -> str | TextSlice:
        data = u.chunk(u.number(layout))
        if isinstance(data, FileSlice):
            return TextSlice(data, "utf-8")
        return data.decode("utf-8", "surrogatepass")

    return _push(make)


def _old_text(layout: str) -> Action:
    # Python 2's str: latin-1, so that array bytes survive (numpy's and detectron2's convention)
    def make(u: InertUnpickler) -> str | FileSlice:
        data = u.chunk(u.number(layout))
        return data if isinstance(data, FileSlice) else data.decode("latin-1")

    return _push(make)


def _bytes(layout: str) -> Action:
    return _push(lambda u: u.chunk(u.number(layout)))


def _text_line(u: InertUnpickler) -> str | TextSlice:
    start, line = u.position, u.line()
    if len(line) > LONG_TEXT:
        return TextSlice(FileSlice(u.state, start, len(line)), "raw-unicode-escape")
    u.keep(len(line))
    return line.decode("raw-unicode-escape")


def _quoted_line(u: InertUnpickler) -> str | TextSlice:
    start, line = u.position, u.line()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise DamagedFile("a string without quotes")
    if len(line) > LONG_TEXT:
        return TextSlice(FileSlice(u.state, start + 1, len(line) - 2), "quoted")
    u.keep(len(line))
    return codecs.escape_decode(line[1:-1])[0].decode("latin-1")  # type: ignore[attr-defined]


def _int_line(u: InertUnpickler) -> int | bool:
    before = u.position
    value = u.text_number()
    if u.position - before == 3 and value in (0, 1):  # "I00\n" and "I01\n" spell booleans
        return bool(value)
    return value


def _long(layout: str) -> Action:
    def make(u: InertUnpickler) -> int:
        count = u.number(layout)
        if count > MAX_NUMBER:
            raise DamagedFile("an absurdly long number")
        return int.from_bytes(u.read(count), "little", signed=True)

    return _push(make)


def _tuple_of(count: int) -> Action:
    def action(u: InertUnpickler) -> None:
        if len(u.stack) < count:
            raise DamagedFile("an empty stack")
        u.stack[-count:] = [tuple(u.stack[-count:])]

    return action


def _append(u: InertUnpickler, values: list[Any]) -> None:
    if isinstance(u.stack[-1], list):
        u.stack[-1].extend(values)


def _set(u: InertUnpickler, items: list[Any]) -> None:
    if len(items) % 2:
        raise DamagedFile("a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        set_item(u.stack[-1], key, value)


def _dict(u: InertUnpickler) -> None:
    items = u.pop_mark()
    u.stack.append({})
    _set(u, items)


def _frozenset(u: InertUnpickler) -> Stub:
    u.pop_mark()
    return u.stub("frozenset")


def _reduce(u: InertUnpickler) -> None:
    arguments, target = u.stack.pop(), u.stack.pop()
    u.stack.append(u.call(target, arguments))


def _newobj_ex(u: InertUnpickler) -> None:
    u.stack.pop()  # the keyword arguments
    _reduce(u)


def _build(u: InertUnpickler) -> None:
    state = u.stack.pop()
    if isinstance(u.stack[-1], Buildable):
        u.stack[-1].build(state)


def _global_line(u: InertUnpickler) -> GlobalRef:
    return global_ref(u.line().decode("utf-8"), u.line().decode("utf-8"))


def _stack_global(u: InertUnpickler) -> GlobalRef:
    name, module = u.stack.pop(), u.stack.pop()
    return global_ref(module, name)


def _object(u: InertUnpickler) -> Any:
    items = u.pop_mark()
    return u.call(items[0], items[1:])


def _persistent(u: InertUnpickler, key: Any) -> Any:
    if u.persistent is None:
        raise DamagedFile("a reference to a storage, but no storages")
    return u.persistent(key)


ACTIONS: Mapping[bytes, Action] = {
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
    op.LONG1: _long("B"),
    op.LONG4: _long("<i"),
    op.FLOAT: _push(lambda u: float(u.line())),
    op.BINFLOAT: _push(lambda u: u.number(">d")),
    op.STRING: _push(_quoted_line),
    op.BINSTRING: _old_text("<i"),
    op.SHORT_BINSTRING: _old_text("B"),
    op.BINBYTES: _bytes("<I"),
    op.SHORT_BINBYTES: _bytes("B"),
    op.BINBYTES8: _bytes("<Q"),
    op.BYTEARRAY8: _bytes("<Q"),
    op.UNICODE: _push(_text_line),
    op.BINUNICODE: _text("<I"),
    op.SHORT_BINUNICODE: _text("B"),
    op.BINUNICODE8: _text("<Q"),
    op.EMPTY_LIST: _push(lambda u: []),
    op.EMPTY_TUPLE: _push(lambda u: ()),
    op.EMPTY_DICT: _push(lambda u: {}),
    op.EMPTY_SET: _push(lambda u: u.stub("set")),
    op.FROZENSET: _push(_frozenset),
    op.LIST: _push(lambda u: u.pop_mark()),
    op.TUPLE: _push(lambda u: tuple(u.pop_mark())),
    op.DICT: _dict,
    op.TUPLE1: _tuple_of(1),
    op.TUPLE2: _tuple_of(2),
    op.TUPLE3: _tuple_of(3),
    op.APPEND: lambda u: _append(u, [u.stack.pop()]),
    op.APPENDS: lambda u: _append(u, u.pop_mark()),
    op.SETITEM: lambda u: _set(u, [u.stack.pop(-2), u.stack.pop()]),
    op.SETITEMS: lambda u: _set(u, u.pop_mark()),
    op.ADDITEMS: lambda u: u.pop_mark(),  # what a set holds is never looked at
    op.GET: _push(lambda u: u.memo[u.index()]),
    op.BINGET: _push(lambda u: u.memo[u.number("B")]),
    op.LONG_BINGET: _push(lambda u: u.memo[u.number("<I")]),
    op.PUT: _put(lambda u: u.index()),
    op.BINPUT: _put(lambda u: u.number("B")),
    op.LONG_BINPUT: _put(lambda u: u.number("<I")),
    op.MEMOIZE: _put(lambda u: len(u.memo)),
    op.GLOBAL: _push(_global_line),
    op.STACK_GLOBAL: _push(_stack_global),
    op.INST: _push(lambda u: u.call(_global_line(u), u.pop_mark())),
    op.OBJ: _push(_object),
    op.REDUCE: _reduce,
    op.NEWOBJ: _reduce,
    op.NEWOBJ_EX: _newobj_ex,
    op.BUILD: _build,
    op.PERSID: _push(lambda u: _persistent(u, u.line().decode("latin-1"))),
    op.BINPERSID: _push(lambda u: _persistent(u, u.stack.pop())),
    op.EXT1: _push(lambda u: u.stub(f"extension {u.number('B')}")),
    op.EXT2: _push(lambda u: u.stub(f"extension {u.number('<H')}")),
    op.EXT4: _push(lambda u: u.stub(f"extension {u.number('<i')}")),
}
