"""metrics.jsonl, one json object per logged iteration, and the same for TensorBoard and W&B."""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moco_det.foundation.atomic import append_line, replacing
from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import read_text

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]
Writer = Callable[[Record], None]


class MetricsFile:
    """Appends records; of an earlier part of the run those stay for which ``keep`` is true.

    Each record goes to ``also``, too.
    """

    def __init__(
        self, path: Path, *, keep: Callable[[Record], bool], also: Writer | None = None
    ) -> None:
        self.path, self.also = path, also
        text = read_text(path, "metrics") if os.path.lexists(path) else ""
        kept = [line for line in text.splitlines() if _whole(line) and keep(json.loads(line))]
        with replacing(path) as file:
            file.write("".join(f"{line}\n" for line in kept).encode())

    def write(self, record: Record) -> None:
        """Append one record."""
        append_line(self.path, json.dumps(record))
        if self.also is not None:
            self.also(record)


def _whole(line: str) -> bool:
    """False for a line that a kill has torn, and for one that is no record."""
    try:
        return isinstance(json.loads(line)["iteration"], int)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def before(first: int, rescored: bool) -> Callable[[Record], bool]:
    """Keeps the records of a detector's training before iteration ``first``, where it goes on.

    One that is ``rescored`` there first is given new scores: the old ones go.
    """

    def keep(record: Record) -> bool:
        again = rescored and record["iteration"] == first - 1 and "total_loss" not in record
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


def numbers(record: Record) -> dict[str, float]:
    """What of a record can be drawn over the iterations."""
    drawn = {name: value for name, value in record.items() if isinstance(value, (int, float))}
    drawn.pop("iteration", None)
    return drawn


def import_wandb(project: str) -> Any:
    """Weights & Biases, None without a project; InputError where it is not installed."""
    try:
        return importlib.import_module("wandb") if project else None
    except ImportError as error:
        raise InputError(
            f"WANDB is {project} and wandb is not installed: pip install wandb, or leave the key "
            "empty"
        ) from error


@contextmanager
def wandb_writer(project: str, folder: Path, config: Mapping[str, Any]) -> Iterator[Writer | None]:
    """Writes to a run of this project that is called as its folder; None without a project.

    InputError where Weights & Biases begins no run: without a login, or without a network.
    """
    wandb = import_wandb(project)
    if wandb is None:
        yield None
        return
    named = {"id": folder.resolve().name, "dir": str(folder), "config": dict(config)}
    try:
        run = wandb.init(project=project, resume="allow", **named)
    except wandb.Error as error:
        raise InputError(
            f"WANDB is {project} and Weights & Biases begins no run ({error}): run wandb login, "
            "or set WANDB_MODE=offline"
        ) from error
    with run:
        yield lambda record: run.log(numbers(record), step=record["iteration"])
