"""Packages that detectron2 needs for LVIS and Cityscapes, made to work with it as they are today.

Each fault below would end a run: the first before its first batch, the others after its last.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from moco_det.foundation.errors import InputError

# Where newer checkouts of detectron2 look for cityscapesscripts: in a tree that is not public.
ABOVE_CITYSCAPES = ("deeplearning", "deeplearning.projects", "deeplearning.projects.cityscapesApi")
CITYSCAPES_SCORER = "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"


def find_cityscapes() -> None:
    """Put the public cityscapesscripts where detectron2 imports it from; again is harmless.

    InputError where the package, or one that it needs, is not installed.
    """
    try:
        importlib.import_module(CITYSCAPES_SCORER)  # else its absence ends a run at its score
    except ImportError as error:
        raise InputError(
            f"Cityscapes needs a package: pip install cityscapesscripts ({error})"
        ) from error
    if ABOVE_CITYSCAPES[0] in sys.modules or importlib.util.find_spec(ABOVE_CITYSCAPES[0]):
        return
    for name in ABOVE_CITYSCAPES:
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = []
    # what lies beside the public package is a subpackage of the innermost one
    package.__path__ = [str(Path(next(iter(sys.modules["cityscapesscripts"].__path__))).parent)]
    importlib.import_module(f"{ABOVE_CITYSCAPES[-1]}.{CITYSCAPES_SCORER}")


# Names that numpy took away (1.24 and 2.4) and that the last releases of lvis (0.5.3) and of
# cityscapesscripts (2.3.0) still take -> what numpy itself names in their place.
GONE = {"float": float, "in1d": np.isin}


@contextmanager
def repaired_scorers() -> Iterator[None]:
    """While a scorer runs, numpy has the names in GONE; those that it has stay its own.

    And Cityscapes' scorer keeps what it found to itself: matches.json, which it leaves in the
    working folder, holds numpy's integers, and those are no JSON.
    """
    gone = {name: value for name, value in GONE.items() if name not in vars(np)}
    with ExitStack() as stack:
        stack.enter_context(changed(np, gone))
        for name in [name for name in sys.modules if name.endswith(CITYSCAPES_SCORER)]:
            unwritten = {"writeDict2JSON": lambda content, path: None}
            stack.enter_context(changed(sys.modules[name], unwritten))
        yield


@contextmanager
def changed(module: ModuleType, names: dict[str, Any]) -> Iterator[None]:
    """A module with other values of some names, and as it was afterwards."""
    before = {name: vars(module)[name] for name in names if name in vars(module)}
    vars(module).update(names)
    try:
        yield
    finally:
        for name in names:
            del vars(module)[name]
        vars(module).update(before)
