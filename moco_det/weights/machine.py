"""Where the instructions of a pickle are carried out without calling anything.

Python's own unpickler runs whatever a file names. Here a file's globals are never imported: each
stays a `Named` pair of strings, and "call it" either finds a row in the table of builders that the
caller handed in (plain dicts, tensors and arrays as descriptions) or leaves an inert `Stub`.
Sizes are checked against what the file still holds before anything is allocated, long strings stay
in the file, and no instruction makes more than it costs.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from moco_det.weights.file_slices import FileSlice, LateText
from moco_det.weights.stubs import (
    HOSTILE,
    Builder,
    DamagedPickle,
    HostilePickle,
    Named,
    Stub,
)

MAX_OPERATIONS = 2_000_000  # a ResNet-152 with its optimizer needs about 100,000
CALL_COST = 20  # operations that a call counts for: what it makes is larger than a number
LATE_BEYOND = 1024  # bytes; longer texts are no names and stay in the file
MAX_TEXT = 64 << 20  # bytes of all shorter texts together
MAX_LINE = 64 << 20  # bytes of a protocol 0 string; the largest tensor of the table has 38 MB
MAX_NUMBER = 1_000  # bytes or digits of a number: str() of a longer one is refused by Python
MAX_FOREIGN = 1_000  # kinds of foreign objects
MAX_INDEX = 1 << 60  # beyond it, numbers can be chosen such that a dict takes for ever
MARK = object()  # where a list of arguments starts on the stack


def set_item(target: Any, key: Any, value: Any) -> None:
    # Only scalar keys: a nested tuple as a key can make hash() run for ever, as can huge numbers.
    if not isinstance(target, dict) or not isinstance(key, (str, bytes, int, float)):
        return
    if not isinstance(key, int) or abs(key) < MAX_INDEX:
        target[key] = value


def _encode(text: Any, encoding: Any = "utf-8") -> bytes | LateText:
    """_codecs.encode: how protocols 0 to 2 spell bytes."""
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise DamagedPickle("bytes in an unknown encoding")
    if isinstance(text, LateText):
        return text
    if not isinstance(text, str):
        raise DamagedPickle("bytes that are not spelt as text")
    return text.encode(encoding)


def _bytearray(data: Any = b"", *_: Any) -> Any:
    return data if isinstance(data, (bytes, FileSlice, LateText)) else b""


BUILDERS: Mapping[tuple[str, str], Builder] = {
    ("collections", "defaultdict"): lambda *_: {},
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytearray"): _bytearray,
    ("builtins", "bytearray"): _bytearray,
}
# How Python spells "an instance of the class in the arguments".
CONSTRUCTORS = frozenset(
    (module, name)
    for module in ("copyreg", "copy_reg")
    for name in ("_reconstructor", "__newobj__", "__newobj_ex__")
)


class Machine:
    """Stack, memo and limits for one pickle in `file`, not read beyond the byte `end`.

    `builders` maps (module, name) to a function of the pickled arguments; `persistent` receives
    persistent ids; `place` makes a slice of (offset, length), without it a long string is an error.
    Afterwards `foreign` holds the names that were met and left as stubs.
    """

    def __init__(
        self,
        file: BinaryIO,
        end: int,
        *,
        builders: Mapping[tuple[str, str], Builder] | None = None,
        persistent: Callable[[Any], Any] | None = None,
        place: Callable[[int, int], FileSlice] | None = None,
    ) -> None:
        self.file = file
        self.position = file.tell()  # kept here: asking the file is a system call each time
        self.end = end
        self.builders = {**BUILDERS, **(builders or {})}
        self.persistent = persistent
        self.place = place
        self.foreign: set[str] = set()
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.budget = MAX_OPERATIONS
        self.text_left = MAX_TEXT
        self.stubs: dict[str, Stub] = {}

    def read(self, count: int) -> bytes:
        if count < 0 or count > self.end - self.position:
            raise DamagedPickle("the file ends too early")
        data = self.file.read(count)
        if len(data) != count:
            raise DamagedPickle("the file ends too early")
        self.position += count
        return data

    def line(self) -> bytes:
        text = self.file.readline(min(self.end - self.position, MAX_LINE))
        if not text.endswith(b"\n"):
            raise DamagedPickle("the file ends too early, or in an endless line")
        self.position += len(text)
        return text[:-1].rstrip(b"\r")

    def chunk(self, count: int) -> bytes | FileSlice:
        """The next bytes: themselves, or where they lie if they are many."""
        if count <= LATE_BEYOND:
            self.keep(count)
            return self.read(count)
        if count > self.end - self.position:
            raise DamagedPickle("the file ends too early")
        place = self.placed(self.position, count)
        self.file.seek(count, io.SEEK_CUR)
        self.position += count
        return place

    def placed(self, offset: int, length: int) -> FileSlice:
        if self.place is None:
            raise DamagedPickle(f"a text of {length} bytes")
        return self.place(offset, length)

    def keep(self, count: int) -> None:
        self.text_left -= count
        if self.text_left < 0:
            raise DamagedPickle(f"more than {MAX_TEXT >> 20} MiB of text")

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.read(struct.calcsize(layout)))[0]

    def index(self) -> int:
        """A place in the memo, as protocol 0 spells it."""
        number = self.text_number()
        if not 0 <= number < MAX_INDEX:
            raise DamagedPickle("an absurd place in the memo")
        return number

    def text_number(self) -> int:
        text = self.line()
        if len(text) > MAX_NUMBER:
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

    def spend(self, cost: int) -> None:
        self.budget -= cost
        if self.budget < 0:
            raise DamagedPickle(f"more than {MAX_OPERATIONS} instructions")

    def name(self, module: Any, name: Any) -> Named:
        # before anything is made of them: the text of a nested tuple can be endless
        if not isinstance(module, str) or not isinstance(name, str):
            raise DamagedPickle("a global without a name")
        named = Named(module, name)
        if not str(named).isprintable() or len(str(named)) > 500:
            raise DamagedPickle("a global without a sensible name")
        if HOSTILE.fullmatch(str(named)):
            raise HostilePickle(str(named))
        return named

    def call(self, target: Any, arguments: Any) -> Any:
        given = arguments if isinstance(arguments, (list, tuple)) else ()
        self.spend(CALL_COST + len(given))
        if not isinstance(target, Named):
            return self.stub("an object made by a foreign object")
        if (target.module, target.name) == ("collections", "OrderedDict"):
            return self.plain_dict(*given[:1])
        builder = self.builders.get((target.module, target.name))
        if builder is not None:
            return builder(*given)
        if (target.module, target.name) in CONSTRUCTORS and given and isinstance(given[0], Named):
            target = given[0]
        self.foreign.add(str(target))
        if len(self.foreign) > MAX_FOREIGN:
            raise DamagedPickle(f"more than {MAX_FOREIGN} kinds of foreign objects")
        return self.stub(str(target))

    def stub(self, origin: str) -> Stub:
        return self.stubs.setdefault(origin, Stub(origin))

    def plain_dict(self, pairs: Any = ()) -> dict[Any, Any]:
        """OrderedDict() or OrderedDict([(key, value), ...]) as a dict."""
        items: dict[Any, Any] = {}
        if isinstance(pairs, list):
            self.spend(len(pairs))  # one list may be handed in again and again
            for pair in pairs:
                if isinstance(pair, (list, tuple)) and len(pair) == 2:
                    set_item(items, pair[0], pair[1])
        return items
