"""metrics.jsonl of a detectron2 run: its metric names, one line an iteration that was logged."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path

from detectron2.utils.events import EventWriter, get_event_storage

# Scalars that are scores of the test set; they get a line of their own.
RULERS = ("bbox/", "segm/", "voc/", "keypoints/")


class MetricsLog(EventWriter):
    """Appends to metrics.jsonl what is new in detectron2's event storage since the last write.

    Unlike detectron2's metrics.json the values are those of the iteration itself, not medians,
    and a score that is undefined is null.
    """

    def __init__(self, path: Path, max_iter: int) -> None:
        self.path = path
        self.last = max_iter - 1
        self.written: dict[str, int] = {}

    def keep_before(self, iteration: int) -> None:
        """Start a file, or drop the lines of iterations that a resumed run does again."""
        text = self.path.read_text(encoding="utf-8") if iteration and self.path.is_file() else ""
        whole = text[: text.rfind("\n") + 1].splitlines()  # a kill may have torn the last one
        kept = [line for line in whole if self._stays(json.loads(line), iteration)]
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def _stays(self, row: dict[str, float | None], first: int) -> bool:
        # a run resumed after its last step is scored once more
        again = first > self.last and row["iteration"] == self.last and "total_loss" not in row
        return int(row["iteration"] or 0) < first and not again

    def write(self) -> None:
        rows: dict[tuple[int, bool], dict[str, float | None]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest().items():
            if iteration <= self.written.get(name, -1):
                continue
            self.written[name] = iteration
            # detectron2 counts the evaluation after the last iteration as one iteration more
            row = rows[min(iteration, self.last), name.startswith(RULERS)]
            row[name] = value if math.isfinite(value) else None
        with open(self.path, "a", encoding="utf-8") as file:
            for (iteration, _), row in sorted(rows.items()):
                file.write(json.dumps({"iteration": iteration, **row}) + "\n")
