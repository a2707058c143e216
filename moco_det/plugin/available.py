"""Whether detectron2 can be imported; one line says so where it cannot."""

from __future__ import annotations

from moco_det.foundation.errors import InputError


class MissingDetectron2(InputError, ImportError):
    """detectron2 cannot be imported: one line for a tool, an ImportError for a program."""


try:
    import detectron2.engine  # noqa: F401  a half-installed detectron2 fails here at the latest
except Exception as error:  # an old one dies of AttributeErrors with a newer Pillow or numpy
    raise MissingDetectron2(
        f"detectron2 cannot be imported ({type(error).__name__}: {error}): `moco-det doctor` knows "
        "the cures; install it by its own instructions, or use --engine standalone"
    ) from error
