"""What a run logs of its steps and scores, under detectron2's metric names."""

from __future__ import annotations

import statistics
from collections import deque
from pathlib import Path
from typing import Any

from moco_det.foundation import collectives
from moco_det.foundation.metrics_file import MetricsFile, Writer, before, event_writer, numbers


class Log:
    """Losses, counts, rates and scores by iteration; lines of iterations done again are dropped.

    The values are those of the iteration itself, not medians as in detectron2's metrics.json.
    Only the main process writes.
    """

    def __init__(
        self,
        path: Path,
        max_iter: int,
        *,
        keep_before: int,
        rescored: bool = False,
        also: Writer | None = None,
    ) -> None:
        self.period = max(1, min(20, max_iter // 40))
        self.last = max_iter - 1
        self.file: MetricsFile | None = None
        self.events: Any = None
        self.recent: deque[float] = deque(maxlen=20)  # seconds of the last steps
        if collectives.is_main():
            self.file = MetricsFile(
                path, keep=before(keep_before, rescored or keep_before > self.last), also=also
            )
            self.events = event_writer(path.parent, keep_before)

    def is_due(self, iteration: int) -> bool:
        """Whether this iteration is written down."""
        return iteration % self.period == 0 or iteration == self.last

    def close(self) -> None:
        if self.events is not None:
            self.events.close()

    def write(self, row: dict[str, Any]) -> None:
        if self.file is not None:
            self.file.write(row)
        if self.events is not None:
            for name, value in numbers(row).items():
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
        for name, table in metrics.items():
            for key, value in table.items():
                if key != "per_class" and (value is None or isinstance(value, (int, float))):
                    row[f"{name}/{key}"] = value
        self.write(row)
