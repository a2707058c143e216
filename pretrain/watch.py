"""Watching a run: metrics.jsonl, and warnings about what short contrastive runs die of."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

# A run here collapsed at K/batch * (1-m) = 0.32 within 200 steps; MoCo's own setting is 0.256.
DRIFT_LIMIT = 0.3
# Feature std relative to that of random directions; that collapsed run ended at 0.06.
COLLAPSE_LIMIT = 0.1


def drift(size: int, batch: int, momentum: float) -> float:
    """How far the key encoder moves while a key is in the queue: K/batch * (1-m)."""
    return size / batch * (1.0 - momentum)


def queue_warnings(size: int, batch: int, momentum: float, images: int) -> list[str]:
    """What to say before a run about a queue that is too long."""
    found = []
    moved = drift(size, batch, momentum)
    if moved > DRIFT_LIMIT:
        found.append(
            f"K/batch x (1-m) = {size}/{batch} x {1 - momentum:.4g} = {moved:.2f} is above "
            f"{DRIFT_LIMIT}: the oldest keys come from another encoder and the run may collapse; "
            "lower MOCO.K or raise MOCO.M"
        )
    if size > images:
        found.append(
            f"MOCO.K {size} is more than the {images} images: each image has older keys of its own "
            "among its negatives; lower MOCO.K"
        )
    return found


class Watch:
    """Looks at each logged record and speaks once about each kind of trouble."""

    def __init__(self, chance_loss: float, *, after: int) -> None:
        """`chance_loss` is that of an encoder that knows nothing; nothing is said before `after`.

        While the queue still holds its random start, the loss is low for the wrong reason.
        """
        self.chance_loss = chance_loss
        self.after = after
        self.best = float("inf")
        self.said: set[str] = set()

    def look(self, record: dict[str, Any]) -> str | None:
        """A warning about this record, or None."""
        if record["iteration"] < self.after:
            return None
        self.best = min(self.best, record["loss"])
        if record["feature_std"] < COLLAPSE_LIMIT and "collapse" not in self.said:
            self.said.add("collapse")
            return (
                f"feature std is {record['feature_std']:.3f} of that of random directions: "
                "the features have collapsed"
            )
        climbed = self.best < self.chance_loss - 0.5 and record["loss"] > self.chance_loss - 0.1
        if climbed and "drift" not in self.said:
            self.said.add("drift")
            return (
                f"the loss climbed from {self.best:.2f} back to {record['loss']:.2f}, "
                f"chance is {self.chance_loss:.2f}: the encoder is drifting"
            )
        return None


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

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
