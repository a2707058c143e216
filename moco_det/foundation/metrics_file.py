"""metrics.jsonl, one json object per logged iteration, and TensorBoard's event files beside it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moco_det.foundation.atomic import replacing

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]


class MetricsFile:
    """Appends records; of an earlier part of the run those stay for which ``keep`` is true."""

    def __init__(self, path: Path, *, keep: Callable[[Record], bool]) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        kept = [line for line in text.splitlines() if _whole(line) and keep(json.loads(line))]
        with replacing(path) as file:
            file.write("".join(f"{line}\n" for line in kept).encode())

    def write(self, record: Record) -> None:
        """Append one record."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _whole(line: str) -> bool:
    """False for a line that a kill has torn."""
    try:
        return "iteration" in json.loads(line)
    except ValueError:
        return False


def before(first: int, last: int) -> Callable[[Record], bool]:
    """Keeps the records of a detector's training before iteration ``first``, where it goes on.

    A run that is resumed after its last iteration is scored once more: the old scores go.
    """

    def keep(record: Record) -> bool:
        again = first > last and record["iteration"] == last and "total_loss" not in record
        return bool(record["iteration"] < first) and not again

    return keep


def event_writer(folder: Path, first: int) -> Any:
    """TensorBoard's writer, or None, which is said, where tensorboard is not installed.

    What an interrupted run wrote from iteration ``first`` on is written again.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info(
            "no TensorBoard files: pip install tensorboard; metrics.jsonl has the same numbers"
        )
        return None
    return SummaryWriter(str(folder), purge_step=first or None)
