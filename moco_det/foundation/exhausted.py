"""What a machine has run out of, told as bad input."""

from __future__ import annotations

import errno

from moco_det.foundation.atomic import DISK_ERRORS
from moco_det.foundation.errors import InputError
from moco_det.foundation.memory import ran_out


def as_input_error(error: Exception) -> InputError | None:
    """The one line of a full disk, a path that cannot be or no memory; None of another fault."""
    if isinstance(error, InputError):
        return error
    if ran_out(error):
        first = str(error).strip().partition("\n")[0]
        return InputError(f"memory has run out ({first}): lower the sizes or the batch")
    if isinstance(error, OSError) and error.errno in (
        *DISK_ERRORS,
        errno.ENAMETOOLONG,
        errno.ELOOP,
    ):
        return InputError(f"cannot open or write {error.filename or 'a file'}: {error.strerror}")
    return None
