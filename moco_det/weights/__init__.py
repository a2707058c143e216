"""Anybody's ResNet checkpoint in, one proven backbone file out; reading never executes.

Importing this package is light: only `convert` and `loading` import torch.
"""

from __future__ import annotations

from moco_det.weights.backbone import Backbone, load_backbone
from moco_det.weights.convert import convert
from moco_det.weights.formats import FORMATS
from moco_det.weights.inspection import inspect
from moco_det.weights.reading import SourceCheckpoint, read_checkpoint
from moco_det.weights.summaries import conversion_lines, table_lines

__all__ = [
    "FORMATS",
    "Backbone",
    "SourceCheckpoint",
    "conversion_lines",
    "convert",
    "inspect",
    "load_backbone",
    "read_checkpoint",
    "table_lines",
]
