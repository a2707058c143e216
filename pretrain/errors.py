"""The one exception that stands for bad input to pre-training."""

from __future__ import annotations


class InputError(Exception):
    """Something the user gave is wrong; the message is one line naming it and the way out."""
