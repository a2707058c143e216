"""Whose checkpoint a file is: one row of rules a format, recognised from its keys.

Nothing is guessed: a name that no rule claims, or a file that two rows claim, is an error.
"""

from __future__ import annotations

from moco_det.weights.formats.recognition import (
    Match,
    Sorted,
    backbone_name,
    encoders_in,
    first_keys,
    matches,
    nearly,
    sort_keys,
)
from moco_det.weights.formats.row import BGR_MSRA, ENCODERS, RGB_IMAGENET, Format
from moco_det.weights.formats.rows import BY_NAME, FORMATS
from moco_det.weights.formats.vocabularies import (
    from_caffe2,
    from_children,
    from_detectron2,
    from_torchvision,
)

__all__ = [
    "BGR_MSRA",
    "BY_NAME",
    "ENCODERS",
    "FORMATS",
    "RGB_IMAGENET",
    "Format",
    "Match",
    "Sorted",
    "backbone_name",
    "encoders_in",
    "first_keys",
    "from_caffe2",
    "from_children",
    "from_detectron2",
    "from_torchvision",
    "matches",
    "nearly",
    "sort_keys",
]
