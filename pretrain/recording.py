"""Where a run's numbers go: metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from moco_det.foundation.errors import InputError
from moco_det.foundation.metrics_file import MetricsFile, Record, event_writer
from pretrain.config import PretrainConfig

Writer = Callable[[Record], None]


def open_writers(cfg: PretrainConfig, stack: ExitStack, *, upto: int) -> list[Writer]:
    """The writers of a run that continues after iteration `upto`, 0 for a new one.

    `stack` closes them. What a resumed run writes again takes the place of the old. Where
    TensorBoard is not installed the log says so; without wandb its key is an InputError.
    """
    folder, writers = Path(cfg.OUTPUT_DIR), list[Writer]()
    if cfg.WANDB:
        try:
            module = importlib.import_module("wandb")
        except ImportError as error:
            raise InputError(
                f"WANDB is {cfg.WANDB} and wandb is not installed: pip install wandb, or leave the "
                "key empty"
            ) from error
        run = module.init(
            project=cfg.WANDB,
            id=folder.resolve().name,
            dir=str(folder),
            config=cfg.plain(),
            resume="allow",
        )
        stack.callback(run.finish)
        writers.append(lambda record: run.log(_numbers(record), step=record["iteration"]))
    events = event_writer(folder, upto + 1 if upto else 0) if cfg.TENSORBOARD else None
    if events is not None:
        stack.callback(events.close)

        def write(record: Record) -> None:
            for name, value in _numbers(record).items():
                events.add_scalar(f"pretrain/{name}", value, record["iteration"])

        writers.append(write)
    path = folder / "metrics.jsonl"
    metrics = MetricsFile(path, keep=lambda record: upto > 0 and record["iteration"] <= upto)
    return [metrics.write, *writers]


def _numbers(record: Record) -> dict[str, float]:
    words = ("iteration", "warning")
    return {name: value for name, value in record.items() if name not in words}
