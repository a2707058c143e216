"""Detection transfer of self-supervised ResNets, honestly compared."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# public name -> where it is; imported on first use, so that `import moco_det` takes no time
PUBLIC = {
    "Predictor": "moco_det.runs.predictor:Predictor",
    "convert_weights": "moco_det.weights.convert:convert",
    "evaluate": "moco_det.runs.run:evaluate",
    "load_backbone": "moco_det.weights.backbone:load_backbone",
    "make_report": "moco_det.report:make_report",
    "train": "moco_det.runs.run:train",
    "zoo": "moco_det.settings.zoo",
}


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'moco_det' has no attribute {name!r}")
    module, _, attribute = PUBLIC[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
