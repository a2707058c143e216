"""What a child notes of its steps, writes and evaluations, and the moment at which it is struck.

The product has no switch for this: torch's hooks and the system calls of a write are wrapped in
the child.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

MOST = 400
WRITE, EVALUATION = "write", "evaluation"
EVALUATED = ("GeneralizedRCNN", "Encoder")  # in eval mode these score a test set


@dataclass(frozen=True)
class Strike:
    """A signal at the n-th moment of a kind, counted from the start of the child."""

    kind: str
    number: int
    signal: int


class Board:
    """Numbers that a child writes and its parent reads: times of steps, and moments by kind."""

    def __init__(self) -> None:
        memory = np.frombuffer(mmap.mmap(-1, 8 * (MOST + 4)), dtype=np.float64)
        self.counts, self.times = memory[:4], memory[4:]

    def clear(self) -> None:
        self.counts[:] = 0

    @property
    def steps(self) -> int:
        return int(self.counts[0])

    @property
    def struck(self) -> float:
        """When the child was struck, by time.monotonic; 0 where it was not."""
        return float(self.counts[1])


def instrument(
    board: Board, strike: Strike | None, *, moments: Path | None = None, order: Path | None = None
) -> None:
    """Let this process note its moments; those of a whole run go to `moments`, one line each."""
    seen = {WRITE: 0, EVALUATION: 0}
    batch: list[str] = []

    def note(path: Path | None, *row: Any) -> None:
        if path is not None:
            with open(path, "a") as file:
                file.write(json.dumps(row) + "\n")

    def due(kind: str, name: str) -> bool:
        seen[kind] += 1
        note(moments, kind, name, board.steps)
        return strike is not None and (strike.kind, strike.number) == (kind, seen[kind])

    def hit() -> None:
        assert strike is not None
        board.counts[1] = time.monotonic()
        if strike.signal == signal.SIGKILL:
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), strike.signal)

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if due(WRITE, f"before {name}"):
                hit()
            result = real(*args, **kwargs)
            if due(WRITE, f"after {name}"):
                hit()
            return result

        return call

    save = torch.save

    def half_saved(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if not due(WRITE, "torch.save"):
            save(content, file, *args, **kwargs)
            return
        whole = io.BytesIO()
        save(content, whole, *args, **kwargs)
        data = whole.getvalue()
        file.write(data[: len(data) // 2])
        file.flush()
        hit()
        file.write(data[len(data) // 2 :])

    def forward(module: torch.nn.Module, inputs: Any) -> None:
        if type(module).__name__ not in EVALUATED:
            return
        if not module.training:
            if due(EVALUATION, type(module).__name__):
                hit()
        elif order is not None:
            batch[:] = [Path(one["file_name"]).name for one in inputs[0]]

    def step(*_: Any) -> None:
        board.times[board.steps] = time.monotonic()
        board.counts[0] += 1
        if order is not None:
            storage = sys.modules["detectron2.utils.events"].get_event_storage()
            note(order, storage.iter, *batch)

    os.fsync, os.replace = wrapped("fsync", os.fsync), wrapped("replace", os.replace)
    torch.save = half_saved
    register_module_forward_pre_hook(forward)
    register_optimizer_step_post_hook(step)
