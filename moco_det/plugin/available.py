"""Whether detectron2 can be imported; told in one line where it cannot."""

from __future__ import annotations

from moco_det.errors import InputError


class MissingDetectron2(InputError, ImportError):
    """detectron2 cannot be imported: one line for a tool, an ImportError for a program."""


try:
    import detectron2.engine  # noqa: F401  a half-installed detectron2 fails here at the latest
except ImportError as error:
    raise MissingDetectron2(
        f"detectron2 cannot be imported ({error}): install it by its own instructions, "
        "or use --engine standalone"
    ) from error
