"""A watch that hears what the interpreter runs, imports, starts or writes."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

RUNS = ("exec", "compile", "import", "os.", "subprocess.", "socket.", "ctypes.", "shutil.", "pty.")
heard: list[str] = []
listening = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not listening:
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & 0o3
    if writes or event == "pickle.find_class" or event.startswith(RUNS):
        heard.append(f"{event} {arguments}"[:200])


# Python's own readers import these at the first text they decode: zipfile's names, pickle's.
for codec in ("cp437", "latin1", "ascii", "raw_unicode_escape"):
    codecs.lookup(codec)
sys.addaudithook(_hook)  # cannot be taken away again, so it is deaf outside `nothing_runs`


@contextmanager
def nothing_runs() -> Iterator[None]:
    """Fails if the interpreter compiles, imports, starts or writes anything meanwhile."""
    global listening
    heard.clear()
    listening = True
    try:
        yield
    finally:
        listening = False
    assert not heard, "; ".join(heard)
