"""Packages that detectron2 needs for LVIS and Cityscapes, made to work with it as they are today.

Each fault below would end a run: the first before its first batch, the others after its last.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np

from moco_det.foundation.errors import InputError

# Where newer checkouts of detectron2 look for cityscapesscripts: in a tree that is not public.
ABOVE_CITYSCAPES = ("deeplearning", "deeplearning.projects", "deeplearning.projects.cityscapesApi")
SCORER_OF_CITYSCAPES = "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"


def let_detectron2_find_cityscapes() -> None:
    """Put the public cityscapesscripts where detectron2 imports it from; again is harmless.

    InputError where the package, or one that it needs, is not installed.
    """
    try:
        importlib.import_module(SCORER_OF_CITYSCAPES)  # else its absence ends a run at its score
    except ImportError as error:
        raise InputError(
            f"Cityscapes needs a package: pip install cityscapesscripts ({error})"
        ) from error
    if ABOVE_CITYSCAPES[0] in sys.modules or importlib.util.find_spec(ABOVE_CITYSCAPES[0]):
        return
    spec = importlib.util.find_spec("cityscapesscripts")
    assert spec is not None and spec.submodule_search_locations  # it was imported above
    folder = Path(next(iter(spec.submodule_search_locations))).parent
    for name in ABOVE_CITYSCAPES:
        package = ModuleType(name)
        package.__path__ = []
        above, _, last = name.rpartition(".")
        if above:
            setattr(sys.modules[above], last, package)
        sys.modules[name] = package
    package.__path__ = [str(folder)]  # what lies there is a subpackage of the innermost one
    importlib.import_module(f"{ABOVE_CITYSCAPES[-1]}.{SCORER_OF_CITYSCAPES}")


# Names that numpy took away (1.24 and 2.4) and that the last releases of lvis (0.5.3) and of
# cityscapesscripts (2.3.0) still take -> what numpy itself names in their place.
GONE = {"float": float, "in1d": np.isin}


@contextmanager
def numpy_as_their_scorers_know_it() -> Iterator[None]:
    """numpy with the names in GONE while a scorer runs; those that it has stay its own."""
    lent = [name for name in GONE if not has(name)]
    vars(np).update({name: GONE[name] for name in lent})
    try:
        yield
    finally:
        for name in lent:
            del vars(np)[name]


@contextmanager
def cityscapes_without_files() -> Iterator[None]:
    """Its scorer keeps what it found to itself: matches.json, which it leaves in the working
    folder, holds numpy's integers, and those are no JSON."""
    modules = [m for name, m in sys.modules.items() if name.endswith(SCORER_OF_CITYSCAPES)]
    before = [vars(module)["writeDict2JSON"] for module in modules]
    for module in modules:
        vars(module)["writeDict2JSON"] = lambda content, path: None
    try:
        yield
    finally:
        for module, function in zip(modules, before, strict=True):
            vars(module)["writeDict2JSON"] = function


def has(name: str) -> bool:
    """Whether numpy has a name, also one that it still gives with a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hasattr(np, name)
