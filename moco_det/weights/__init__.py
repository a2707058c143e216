"""Anybody's ResNet checkpoint in, one proven backbone file out; reading never executes.

Importing this room is light: torch and torchvision are imported by `convert` alone.
"""

from __future__ import annotations

from moco_det.weights.backbone import Backbone, load_backbone
from moco_det.weights.convert import Conversion, convert
from moco_det.weights.formats import BY_NAME, FORMATS, Format
from moco_det.weights.inspection import inspect, table_lines
from moco_det.weights.reading import SourceCheckpoint, read_checkpoint

__all__ = [
    "BY_NAME",
    "FORMATS",
    "Backbone",
    "Conversion",
    "Format",
    "SourceCheckpoint",
    "convert",
    "inspect",
    "load_backbone",
    "read_checkpoint",
    "table_lines",
]
