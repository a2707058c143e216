"""Where a run's numbers go: metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from moco_det.foundation.errors import InputError

logger = logging.getLogger(__name__)


class Writer(Protocol):
    """Takes one record after the other; a record has "iteration" and numbers."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Keep one record."""

    def close(self) -> None:
        """Nothing comes after this."""


class MetricsFile:
    """metrics.jsonl: one object a logged iteration."""

    def __init__(self, path: Path, *, upto: int) -> None:
        """Keep the lines up to iteration `upto` of an earlier part of the run, drop the rest."""
        self.path = path
        kept = []
        if upto and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["iteration"] <= upto:
                        kept.append(line + "\n")
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue  # a line torn by the kill
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, path)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        """Every record is on disk already."""


class TensorBoard:
    """Event files in the folder; what a resumed run writes again takes the place of the old."""

    def __init__(self, folder: Path, *, upto: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=upto + 1 if upto else None)

    def write(self, record: Mapping[str, Any]) -> None:
        """One point for each number of the record."""
        for name, value in _numbers(record).items():
            self.writer.add_scalar(f"pretrain/{name}", value, record["iteration"])

    def close(self) -> None:
        """Write out what waits."""
        self.writer.close()


class WandB:
    """A run of a Weights & Biases project; a resumed run goes on under the same id."""

    def __init__(self, project: str, *, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise InputError(
                f"WANDB is {project} and wandb is not installed: pip install wandb, or leave the "
                "key empty"
            ) from error
        self.run = wandb.init(
            project=project,
            id=folder.resolve().name,
            dir=str(folder),
            config=dict(config),
            resume="allow",
        )

    def write(self, record: Mapping[str, Any]) -> None:
        """One step of the run."""
        self.run.log(_numbers(record), step=record["iteration"])

    def close(self) -> None:
        """Send what waits."""
        self.run.finish()


def open_writers(
    folder: Path, *, upto: int, tensorboard: bool, wandb: str, config: Mapping[str, Any]
) -> list[Writer]:
    """The writers of a run that continues after iteration `upto`, 0 for a new one.

    Where TensorBoard is not installed the log says so; without wandb its key is an InputError.
    """
    writers: list[Writer] = []
    if wandb:
        writers.append(WandB(wandb, folder=folder, config=config))
    if tensorboard:
        try:
            writers.append(TensorBoard(folder, upto=upto))
        except ImportError:
            logger.info("no TensorBoard files: pip install tensorboard, or set TENSORBOARD False")
    return [MetricsFile(folder / "metrics.jsonl", upto=upto), *writers]


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in record.items()
        if name != "iteration" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
