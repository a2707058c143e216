"""What is installed and whether it works together, with the cure for each fault."""

from __future__ import annotations

from collections.abc import Iterator

from moco_det.doctor import engines, hardware, packages, storage
from moco_det.doctor.finding import FAULT, NOTE, OK, Finding

__all__ = ["FAULT", "NOTE", "OK", "Finding", "examine"]


def examine() -> Iterator[Finding]:
    """Every finding, one after the other as it is made; the engine that `auto` takes is last."""
    yield from packages.check_python()
    yield from packages.check_torch()
    yield from packages.check_required()
    yield from hardware.check_hardware()
    yield from engines.check_detectron2()
    yield from storage.check_datasets()
    yield from storage.check_disk()
    yield from engines.check_engine()
