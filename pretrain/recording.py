"""Where a run's numbers go: metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from moco_det.foundation.atomic import write_text
from moco_det.foundation.errors import InputError

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]  # "iteration", numbers, and words for metrics.jsonl alone
Writer = Callable[[Record], None]


def open_writers(
    folder: Path, stack: ExitStack, *, upto: int, tensorboard: bool, wandb: str, config: Record
) -> list[Writer]:
    """The writers of a run that continues after iteration `upto`, 0 for a new one.

    `stack` closes them. What a resumed run writes again takes the place of the old. Where
    TensorBoard is not installed the log says so; without wandb its key is an InputError.
    """
    writers: list[Writer] = []
    if wandb:
        try:
            module = importlib.import_module("wandb")
        except ImportError as error:
            raise InputError(
                f"WANDB is {wandb} and wandb is not installed: pip install wandb, or leave the "
                "key empty"
            ) from error
        run = module.init(
            project=wandb,
            id=folder.resolve().name,
            dir=str(folder),
            config=dict(config),
            resume="allow",
        )
        stack.callback(run.finish)
        writers.append(lambda record: run.log(_numbers(record), step=record["iteration"]))
    if tensorboard:
        try:
            writers.append(_event_files(folder, stack, upto=upto))
        except ImportError:
            logger.info("no TensorBoard files: pip install tensorboard, or set TENSORBOARD False")
    return [_metrics_file(folder / "metrics.jsonl", upto=upto), *writers]


def _metrics_file(path: Path, *, upto: int) -> Writer:
    kept = []
    if upto and path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["iteration"] <= upto:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError, TypeError):
                continue  # a line torn by the kill
    write_text(path, "".join(kept))

    def write(record: Record) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    return write


def _event_files(folder: Path, stack: ExitStack, *, upto: int) -> Writer:
    from torch.utils.tensorboard import SummaryWriter

    events = SummaryWriter(str(folder), purge_step=upto + 1 if upto else None)
    stack.callback(events.close)

    def write(record: Record) -> None:
        for name, value in _numbers(record).items():
            events.add_scalar(f"pretrain/{name}", value, record["iteration"])

    return write


def _numbers(record: Record) -> dict[str, float]:
    words = ("iteration", "warning")
    return {name: value for name, value in record.items() if name not in words}
