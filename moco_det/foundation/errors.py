"""The exceptions that are told in one line."""

from __future__ import annotations

# A name in a file may be as long as the file; the way out stands at the end of what is said.
_LONGEST = 2000


def one_line(error: Exception) -> str:
    """What an error says, control characters and lone surrogates spelled out, the middle cut."""
    text = " ".join(str(error).split())
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}"


class InputError(Exception):
    """Something the user gave is wrong; the message is one line naming it and the way out.

    The tools print the message and exit with code 2. Any other exception is a fault of the
    program and keeps its traceback.
    """


class ProcessDied(Exception):
    """One of several processes has ended and took the run with it; the message is one line.

    The tools print it and exit with code 1.
    """
