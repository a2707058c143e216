"""Anybody's ResNet checkpoint in, one proven backbone file out; reading never executes.

Importing this room is light: torch and torchvision are imported by `convert` alone.
"""

from __future__ import annotations

from moco_det.weights.backbone import Backbone, load_backbone
from moco_det.weights.convert import Conversion, convert, describe, summary_lines
from moco_det.weights.formats import BY_NAME, FORMATS, Format
from moco_det.weights.reading import SourceCheckpoint, read_checkpoint

__all__ = [
    "BY_NAME",
    "FORMATS",
    "Backbone",
    "Conversion",
    "Format",
    "SourceCheckpoint",
    "convert",
    "describe",
    "load_backbone",
    "read_checkpoint",
    "summary_lines",
]
