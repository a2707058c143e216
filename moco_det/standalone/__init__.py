"""The R-CNN engine for machines without detectron2: same keys, names and numbers."""

from __future__ import annotations

from moco_det.standalone.build import build_detector
from moco_det.standalone.engine import StandaloneEngine

__all__ = ["StandaloneEngine", "build_detector"]
