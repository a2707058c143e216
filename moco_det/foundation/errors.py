"""The exceptions that are told in one line."""

from __future__ import annotations


def one_line(error: Exception) -> str:
    """What an error says, its control characters and lone surrogates spelled out."""
    text = " ".join(str(error).split())
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class InputError(Exception):
    """Something the user gave is wrong; the message is one line naming it and the way out.

    The tools print the message and exit with code 2. Any other exception is a fault of the
    program and keeps its traceback.
    """


class ProcessDied(Exception):
    """One of several processes has ended and took the run with it; the message is one line.

    The tools print it and exit with code 1.
    """
