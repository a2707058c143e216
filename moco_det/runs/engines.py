"""Which engine a run takes: detectron2 where it can be imported, else the standalone one."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moco_det.foundation.errors import InputError
from moco_det.settings.engine import ENGINES, Engine

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode


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
        import moco_det.plugin  # noqa: F401
    except ImportError as error:
        theirs = isinstance(error, InputError) or (error.name or "").startswith("detectron2")
        if asked == "detectron2" or not theirs:
            raise
        return Choice("standalone", str(error), broken=True)
    return Choice("detectron2", "as asked" if asked == "detectron2" else "it can be imported")


def load_config(engine: str, path: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """A config over an engine's defaults; InputError for whatever that engine would not honour."""
    if engine == "detectron2":
        from moco_det.plugin.config import load_config as load
    else:
        from moco_det.settings.config import load_config as load
    return load(path, overrides)


def load_engine(name: str) -> Engine:
    """An engine by its name; imported here, for only a choice of engine may load one."""
    if name == "detectron2":
        from moco_det.plugin.engine import Detectron2Engine

        return Detectron2Engine()
    from moco_det.standalone.engine import StandaloneEngine

    return StandaloneEngine()
