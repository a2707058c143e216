"""Numbers that layers note about a step for the log, where somebody asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_numbers: ContextVar[dict[str, float] | None] = ContextVar("numbers", default=None)


@contextmanager
def recorded(wanted: bool = True) -> Iterator[dict[str, float]]:
    """Within this, what layers note is put into the dictionary; it stays empty if not wanted."""
    numbers: dict[str, float] = {}
    token = _numbers.set(numbers if wanted else None)
    try:
        yield numbers
    finally:
        _numbers.reset(token)


def is_recording() -> bool:
    """Whether it is worth computing something to note."""
    return _numbers.get() is not None


def note(name: str, value: float | Tensor) -> None:
    """One number under detectron2's name; nothing happens where nobody records."""
    numbers = _numbers.get()
    if numbers is not None:
        numbers[name] = float(value)
