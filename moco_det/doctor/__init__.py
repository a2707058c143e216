"""What is installed and whether it works together, with the cure for each fault."""

from __future__ import annotations

from collections.abc import Iterator

from moco_det.doctor.engines import check_detectron2, check_engine
from moco_det.doctor.finding import FAULT, NOTE, OK, Finding
from moco_det.doctor.hardware import check_hardware
from moco_det.doctor.packages import check_python, check_required, check_torch
from moco_det.doctor.storage import check_datasets, check_disk

__all__ = ["FAULT", "NOTE", "OK", "Finding", "examine"]


def examine() -> Iterator[Finding]:
    """Every finding, one after the other as it is made; the engine that `auto` takes is last."""
    for check in (
        check_python,
        check_torch,
        check_required,
        check_hardware,
        check_detectron2,
        check_datasets,
        check_disk,
        check_engine,
    ):
        yield from check()
