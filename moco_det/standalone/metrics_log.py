"""What a run logs of its steps and scores, under detectron2's metric names.

metrics.jsonl always, and TensorBoard's event files where the package tensorboard is installed.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections import deque
from pathlib import Path
from typing import Any

from moco_det.foundation import collectives

logger = logging.getLogger(__name__)


class Log:
    """Losses, counts, rates and scores by iteration; lines of iterations done again are dropped.

    The values are those of the iteration itself, not medians as in detectron2's metrics.json.
    """

    def __init__(self, path: Path, max_iter: int, *, keep_before: int) -> None:
        self.path = path
        self.period = max(1, min(20, max_iter // 40))
        self.last = max_iter - 1
        self.events: Any = None
        self.recent: deque[float] = deque(maxlen=20)  # seconds of the last steps
        if collectives.rank() != 0:
            return
        kept = [line for line in whole_lines(path) if self.stays(json.loads(line), keep_before)]
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self.events = event_writer(path.parent, keep_before)

    def is_due(self, iteration: int) -> bool:
        """Whether this iteration is written down."""
        return iteration % self.period == 0 or iteration == self.last

    def close(self) -> None:
        if self.events is not None:
            self.events.close()

    def stays(self, row: dict[str, Any], keep_before: int) -> bool:
        # a run resumed after its last step is scored once more
        again = keep_before > self.last and row["iteration"] == self.last
        return row["iteration"] < keep_before and not (again and "total_loss" not in row)

    def write(self, row: dict[str, Any]) -> None:
        if collectives.rank() == 0:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if self.events is not None:
            for name, value in row.items():
                if name != "iteration" and value is not None:
                    self.events.add_scalar(name, value, row["iteration"])

    def write_step(
        self,
        iteration: int,
        losses: dict[str, float],
        numbers: dict[str, float],
        *,
        lr: float,
        seconds: float,
        waited: float,
    ) -> None:
        """One step: its losses, what its layers noted, its rate and its times in seconds."""
        self.recent.append(seconds)
        if not self.is_due(iteration):
            return
        left = statistics.median(self.recent) * (self.last - iteration)
        row = {"iteration": iteration, "total_loss": sum(losses.values()), **losses, **numbers}
        times = {"time": round(seconds, 4), "data_time": round(waited, 4)}
        self.write({**row, "lr": lr, **times, "eta_seconds": round(left, 1)})

    def write_scores(self, iteration: int, metrics: dict[str, Any]) -> None:
        row: dict[str, Any] = {"iteration": iteration}
        for ruler, table in metrics.items():
            for key, value in table.items():
                if key != "per_class" and (value is None or isinstance(value, (int, float))):
                    row[f"{ruler}/{key}"] = value
        self.write(row)


def event_writer(folder: Path, first: int) -> Any:
    """TensorBoard's writer, or None, which is said, where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info(
            "no TensorBoard files: pip install tensorboard; metrics.jsonl has the same numbers"
        )
        return None
    # what an interrupted run wrote beyond its last checkpoint is done again
    return SummaryWriter(str(folder), purge_step=first or None)


def whole_lines(path: Path) -> list[str]:
    """Lines of a log that may not be there; one that a kill tore is left out."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()
