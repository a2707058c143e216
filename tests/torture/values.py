"""Values that no honest file holds, and files with one of them in the place of a true one."""

from __future__ import annotations

import copy
import json
import os
import random
from pathlib import Path
from typing import Any, NamedTuple

MARK = "xss"  # an element with this id in a report is text that was taken for html
HTML = (
    f"<b id={MARK}1>x</b>",
    f"'\"><img id={MARK}2 src=x onerror=alert(1)>",
    f"</script><script id={MARK}3>alert(1)</script>",
    f"</svg><p id={MARK}4>",
)
# Written into json as they are here, for json.dumps does not write them.
RAW = {
    "@digits@": "9" * 400,
    "@many@": "1" * 5000,
    "@over@": "1e400",
    "@deep@": "[" * 100_000 + "]" * 100_000,
    "@deeper@": '{"a":' * 3000 + "1" + "}" * 3000,
    "@infinity@": "-Infinity",
    "@nan@": "NaN",
}
JSON: tuple[Any, ...] = (
    *RAW,
    *HTML,
    *(None, True, 0, -1, -0.5, 0.1, 1e8, 10**12, 1e308, 2**63, -(2**63), 1e-320),
    *("", " ", "x", "1", "\x00", "\ud800", "a" * 70_000, "../../x", "/etc/passwd", "/dev/zero"),
    *("\u202e\u0007\x1b[31m", "%s%n{0}", "[]", "NaN", "CON", "\n\n"),
    *(
        [],
        {},
        [[]],
        [None],
        {"a": {}},
        [1e9] * 6,
        [-1e9, 1e9] * 4,
        [[1e12] * 4] * 3,
        list(range(5)),
    ),
)
YAML = (
    *("0", "-1", "1e8", "100000000", "1000000000000", ".nan", ".inf", "-.inf", "1e400", "9" * 400),
    *("9" * 5000, "2020-99-99", "!!int abc", "!!map [1]", "!!python/object/apply:os.system [id]"),
    *("''", "null", "true", "[]", "{}", "[[[]]]", "{a: 1}", "{[1]: 2}", "{{a: 1}: 2}", "x" * 5000),
    *(
        "&a [*a]",
        "*nothing",
        "!!binary x",
        "!!set {a}",
        "'\\0'",
        '"\\0"',
        "|",
        "0x",
        "1:60:60",
        "~",
    ),
    *("[" * 4000, "{a: " * 4000, "!!timestamp x", "!!float x", "!!bool x", "@x", "%x", "\t", "- -"),
)
WORDS = (
    *(
        "0",
        "-1",
        "1e8",
        "100000",
        "100000000",
        "1000000000000",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "9" * 400,
    ),
    *(
        "9" * 5000,
        "0.5",
        "",
        " ",
        "x",
        "None",
        "True",
        "[]",
        "()",
        "[[1]]",
        "[1e8]",
        "{}",
        "{1: 2}",
    ),
    *(
        "2020-99-99",
        "!!int abc",
        "a" * 5000,
        "/dev/zero",
        "..",
        "\udcff",
        "\u202e",
        "a\nb",
        "a\x00b",
    ),
    *("&a [*a]", "[" * 3000, "[-1]", "[0]", "['x']", "[1, 2, 3, 4, 5]", "[None]", "(1e9, 1e9)"),
)


class Case(NamedTuple):
    """An input for a tool. `new`: what it writes is a whole that is absent where it is refused."""

    argv: list[str]
    note: str
    new: bool = False
    codes: tuple[int, ...] = (0, 2)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all nodes of nested dictionaries and lists below the top."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, value in items:
        found.append((*path, key))
        if isinstance(value, (dict, list)):
            found += places(value, (*path, key))
    return found


def changed(tree: Any, rng: random.Random, values: Any, *, times: int = 1) -> tuple[Any, str]:
    """A copy of a tree with values replaced, taken out or twice there, and what was done."""
    tree, notes = copy.deepcopy(tree), []
    for _ in range(times):
        known = places(tree)
        if not known:
            break
        path = rng.choice(known)
        node = tree
        for key in path[:-1]:
            node = node[key]
        what = rng.random()
        if what < 0.15:
            del node[path[-1]]
            notes.append(f"{path} gone")
        elif what < 0.2 and isinstance(node, list):
            node += node[:]
            notes.append(f"{path[:-1]} doubled")
        else:
            node[path[-1]] = value = copy.deepcopy(rng.choice(values))
            notes.append(f"{path} = {value!r:.60}")
    return tree, "; ".join(notes)


def raw_json(tree: Any) -> str:
    """json with the values of RAW as they are."""
    text = json.dumps(tree)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text


def damaged(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Bytes that were flipped, cut off, filled or mixed up."""
    way = rng.choice(("flip", "cut", "zeros", "swap", "empty", "noise", "double", "text"))
    changed_data = bytearray(data)
    at = rng.randrange(max(1, len(data)))
    if way == "flip":
        for _ in range(rng.choice((1, 3, 50))):
            changed_data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif way == "cut":
        del changed_data[at:]
    elif way == "zeros":
        changed_data[at : at + 4096] = bytes(len(changed_data[at : at + 4096]))
    elif way == "swap":
        changed_data = changed_data[at:] + changed_data[:at]
    elif way == "empty":
        changed_data.clear()
    elif way == "noise":
        changed_data[:] = rng.randbytes(min(len(data), 5000))
    elif way == "double":
        changed_data += data
    else:
        changed_data[:] = rng.choice((b"<html>404</html>", b"version https://git-lfs", b"\n" * 99))
    return bytes(changed_data), f"{way} at {at} of {len(data)}"


SPECIAL = (
    "fifo",
    "device",
    "folder",
    "loop",
    "dangling",
    "endless",
    "self",
    "long",
    "nul",
    "empty",
)


def special(path: Path, kind: str) -> str:
    """Something at `path` that is no regular file, or a name that nothing can have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind in ("long", "nul"):
        name = "n" * 300 if kind == "long" else "a\0b"
        return f"{path.parent}/{name}{path.suffix}"
    else:
        target = {"device": "/dev/zero", "endless": "/dev/urandom", "dangling": "nowhere"}
        path.symlink_to(target.get(kind, path.name if kind == "loop" else "/proc/self/mem"))
    return str(path)
