"""Which engine a run takes: detectron2 where it can be imported, else the standalone one."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from moco_det.foundation.errors import InputError

ENGINES = ("auto", "detectron2", "standalone")


@dataclass(frozen=True)
class Choice:
    """The engine, and in words why; ``broken`` where a detectron2 is there that does not work."""

    engine: str
    reason: str
    broken: bool = False


def choose_engine(asked: str) -> Choice:
    """``auto`` takes detectron2 where it can be imported; a wish that cannot be met is an error."""
    if asked not in ENGINES:
        raise InputError(f"--engine {asked!r} is not known: use one of {', '.join(ENGINES)}")
    if asked == "standalone":
        return Choice("standalone", "as asked")
    if importlib.util.find_spec("detectron2") is None:
        if asked == "auto":
            return Choice("standalone", "detectron2 is not installed")
        raise InputError(
            "--engine detectron2: it cannot be imported; see its installation in README.md, "
            "or use --engine standalone"
        )
    try:
        # Here, not above: only a choice of engine may load one.
        import moco_det.plugin  # noqa: F401
    except ImportError as error:
        theirs = isinstance(error, InputError) or (error.name or "").startswith("detectron2")
        if asked == "detectron2" or not theirs:
            raise
        return Choice("standalone", str(error), broken=True)
    return Choice("detectron2", "as asked" if asked == "detectron2" else "it can be imported")
