"""metrics.jsonl: what a run logs of its steps and scores, under detectron2's metric names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moco_det.standalone import distributed


class Log:
    """metrics.jsonl under detectron2's names; lines of iterations done again are dropped."""

    def __init__(self, path: Path, max_iter: int, *, keep_before: int) -> None:
        self.path = path
        self.period = max(1, min(20, max_iter // 40))
        self.last = max_iter - 1
        if distributed.rank() != 0:
            return
        kept = [line for line in whole_lines(path) if self.stays(json.loads(line), keep_before)]
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def stays(self, row: dict[str, Any], keep_before: int) -> bool:
        # a run resumed after its last step is scored once more
        again = keep_before > self.last and row["iteration"] == self.last
        return row["iteration"] < keep_before and not (again and "total_loss" not in row)

    def write(self, row: dict[str, Any]) -> None:
        if distributed.rank() == 0:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def write_losses(
        self, iteration: int, losses: dict[str, float], lr: float, seconds: float, waited: float
    ) -> None:
        if iteration % self.period and iteration != self.last:
            return
        row = {"iteration": iteration, "total_loss": sum(losses.values()), **losses, "lr": lr}
        self.write({**row, "time": round(seconds, 4), "data_time": round(waited, 4)})

    def write_scores(self, iteration: int, metrics: dict[str, Any]) -> None:
        row: dict[str, Any] = {"iteration": iteration}
        for ruler, table in metrics.items():
            for key, value in table.items():
                if key != "per_class" and (value is None or isinstance(value, (int, float))):
                    row[f"{ruler}/{key}"] = value
        self.write(row)


def whole_lines(path: Path) -> list[str]:
    """Lines of a log that may not be there; one that a kill tore is left out."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()
