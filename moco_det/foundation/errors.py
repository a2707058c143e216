"""The one exception that stands for bad input."""

from __future__ import annotations


class InputError(Exception):
    """Something the user gave is wrong; the message is one line naming it and the way out.

    The tools print the message and exit with code 2. Any other exception is a fault of the
    program and keeps its traceback.
    """
