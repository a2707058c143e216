"""A pickle reader in which no instruction can call anything: the instructions, one by one."""

from __future__ import annotations

import codecs
import pickle as op
import struct
from collections.abc import Callable, Mapping
from typing import Any

from moco_det.weights.file_slices import FileSlice, LateText
from moco_det.weights.machine import LATE_BEYOND, MARK, MAX_NUMBER, Machine, set_item
from moco_det.weights.stubs import Buildable, DamagedPickle, Stub


class InertUnpickler(Machine):
    """Reads one pickle; see `Machine` for the arguments."""

    def load(self) -> Any:
        """The pickled object. Raises DamagedPickle or HostilePickle."""
        try:
            while True:
                self.spend(1)
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


def _push(make: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    def action(u: Machine) -> None:
        u.stack.append(make(u))

    return action


def _protocol(u: Machine) -> None:
    if u.number("B") > 5:
        raise DamagedPickle("a pickle protocol beyond 5")


def _frozenset(u: Machine) -> Stub:
    u.pop_mark()
    return u.stub("frozenset")


def _put(index: Callable[[Machine], int]) -> Callable[[Machine], None]:
    def action(u: Machine) -> None:
        u.memo[index(u)] = u.stack[-1]

    return action


def _text(layout: str) -> Callable[[Machine], str | LateText]:
    def make(u: Machine) -> str | LateText:
        data = u.chunk(u.number(layout))
        if isinstance(data, FileSlice):
            return LateText(data, "utf-8")
        return data.decode("utf-8", "surrogatepass")

    return make


def _old_text(layout: str) -> Callable[[Machine], str | FileSlice]:
    # Python 2's str: latin-1, so that array bytes survive (numpy's and detectron2's convention)
    def make(u: Machine) -> str | FileSlice:
        data = u.chunk(u.number(layout))
        return data if isinstance(data, FileSlice) else data.decode("latin-1")

    return make


def _bytes(layout: str) -> Callable[[Machine], bytes | FileSlice]:
    return lambda u: u.chunk(u.number(layout))


def _unicode_line(u: Machine) -> str | LateText:
    start, line = u.position, u.line()
    if len(line) > LATE_BEYOND:
        return LateText(u.placed(start, len(line)), "raw-unicode-escape")
    u.keep(len(line))
    return line.decode("raw-unicode-escape")


def _quoted(u: Machine) -> str | LateText:
    start, line = u.position, u.line()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise DamagedPickle("a string without quotes")
    if len(line) > LATE_BEYOND:
        return LateText(u.placed(start + 1, len(line) - 2), "quoted")
    u.keep(len(line))
    return codecs.escape_decode(line[1:-1])[0].decode("latin-1")  # type: ignore[attr-defined]


def _int_line(u: Machine) -> int | bool:
    before = u.position
    value = u.text_number()
    if u.position - before == 3 and value in (0, 1):  # "I00\n" and "I01\n" spell booleans
        return bool(value)
    return value


def _long(layout: str) -> Callable[[Machine], int]:
    def make(u: Machine) -> int:
        count = u.number(layout)
        if count > MAX_NUMBER:
            raise DamagedPickle("an absurdly long number")
        return int.from_bytes(u.read(count), "little", signed=True)

    return make


def _tuple_of(count: int) -> Callable[[Machine], None]:
    def action(u: Machine) -> None:
        if len(u.stack) < count:
            raise DamagedPickle("an empty stack")
        u.stack[-count:] = [tuple(u.stack[-count:])]

    return action


def _append(u: Machine) -> None:
    value = u.stack.pop()
    if isinstance(u.stack[-1], list):
        u.stack[-1].append(value)


def _appends(u: Machine) -> None:
    values = u.pop_mark()
    if isinstance(u.stack[-1], list):
        u.stack[-1].extend(values)


def _setitem(u: Machine) -> None:
    value, key = u.stack.pop(), u.stack.pop()
    set_item(u.stack[-1], key, value)


def _fill(target: Any, items: list[Any]) -> Any:
    if len(items) % 2:
        raise DamagedPickle("a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        set_item(target, key, value)
    return target


def _setitems(u: Machine) -> None:
    items = u.pop_mark()
    _fill(u.stack[-1], items)


def _additems(u: Machine) -> None:
    u.pop_mark()  # what a set holds is never looked at


def _reduce(u: Machine) -> None:
    arguments, target = u.stack.pop(), u.stack.pop()
    u.stack.append(u.call(target, arguments))


def _newobj_ex(u: Machine) -> None:
    u.stack.pop()
    _reduce(u)


def _build(u: Machine) -> None:
    state = u.stack.pop()
    if isinstance(u.stack[-1], Buildable):
        u.stack[-1].build(state)


def _inst(u: Machine) -> None:
    named = u.name(u.line().decode("utf-8"), u.line().decode("utf-8"))
    u.stack.append(u.call(named, u.pop_mark()))


def _obj(u: Machine) -> None:
    items = u.pop_mark()
    u.stack.append(u.call(items[0], items[1:]))


def _stack_global(u: Machine) -> None:
    name, module = u.stack.pop(), u.stack.pop()
    u.stack.append(u.name(module, name))


def _persid(u: Machine) -> None:
    u.stack.append(u.line().decode("latin-1"))
    _binpersid(u)


def _binpersid(u: Machine) -> None:
    if u.persistent is None:
        raise DamagedPickle("a reference to a storage, but no storages")
    u.stack.append(u.persistent(u.stack.pop()))


ACTIONS: Mapping[bytes, Callable[[Machine], Any]] = {
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
    op.UNICODE: _push(_unicode_line),
    op.BINUNICODE: _push(_text("<I")),
    op.SHORT_BINUNICODE: _push(_text("B")),
    op.BINUNICODE8: _push(_text("<Q")),
    op.EMPTY_LIST: _push(lambda u: []),
    op.EMPTY_TUPLE: _push(lambda u: ()),
    op.EMPTY_DICT: _push(lambda u: {}),
    op.EMPTY_SET: _push(lambda u: u.stub("set")),
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
    op.GET: _push(lambda u: u.memo[u.index()]),
    op.BINGET: _push(lambda u: u.memo[u.number("B")]),
    op.LONG_BINGET: _push(lambda u: u.memo[u.number("<I")]),
    op.PUT: _put(lambda u: u.index()),
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
    op.EXT1: _push(lambda u: u.stub(f"extension {u.number('B')}")),
    op.EXT2: _push(lambda u: u.stub(f"extension {u.number('<H')}")),
    op.EXT4: _push(lambda u: u.stub(f"extension {u.number('<i')}")),
}
