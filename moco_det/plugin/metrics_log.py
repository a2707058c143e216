"""metrics.jsonl of a detectron2 run: its metric names, one line per logged iteration."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

from detectron2.utils.events import EventWriter, get_event_storage

from moco_det.foundation.metrics_file import MetricsFile, Writer, before

# Scalars that are scores of the test set; they get a line of their own.
SCORES = ("bbox/", "segm/", "voc/", "keypoints/")


class MetricsLog(EventWriter):
    """Appends to metrics.jsonl what is new in detectron2's event storage since the last write.

    Unlike detectron2's metrics.json the values are those of the iteration itself, not medians,
    and a score that is undefined is null.
    """

    def __init__(self, path: Path, max_iter: int, also: Writer | None = None) -> None:
        self.path, self.also = path, also
        self.last = max_iter - 1
        self.written: dict[str, int] = {}

    def keep_before(self, iteration: int) -> None:
        """Start the file; of an earlier part of the run the lines before ``iteration`` stay."""
        self.file = MetricsFile(
            self.path, keep=before(iteration, iteration > self.last), also=self.also
        )

    def write(self) -> None:
        rows: dict[tuple[int, bool], dict[str, float | None]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest().items():
            if iteration <= self.written.get(name, -1):
                continue
            self.written[name] = iteration
            # detectron2 counts the evaluation after the last iteration as one iteration more
            row = rows[min(iteration, self.last), name.startswith(SCORES)]
            row[name] = value if math.isfinite(value) else None
        for (iteration, _), row in sorted(rows.items()):
            self.file.write({"iteration": iteration, **row})
