"""Watching a run: warnings about what short contrastive runs die of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# Feature std relative to that of random directions; a run here that collapsed ended at 0.06.
COLLAPSE_LIMIT = 0.1
# Standard errors by which two votes on the same pictures must differ to be called different.
KNN_ERRORS = 2.0


@dataclass(frozen=True)
class KnnGain:
    """kNN accuracy against that of the same network's random weights, in percent.

    `margin` is how far apart two equally good encoders may be on these pictures.
    """

    accuracy: float
    random: float
    margin: float

    @property
    def points(self) -> float:
        """Above random weights."""
        return self.accuracy - self.random

    def __str__(self) -> str:
        chance = f"up to {self.margin:.1f} points are chance"
        return f"kNN {self.accuracy:.1f} %, random weights {self.random:.1f} % ({chance})"

    def record(self) -> dict[str, float]:
        """For the metrics file; the report draws and judges by these names."""
        return {
            "knn_accuracy": round(self.accuracy, 4),
            "knn_random": round(self.random, 4),
            "knn_margin": round(self.margin, 4),
        }


def knn_gain(random: Tensor, now: Tensor) -> KnnGain:
    """From which pictures [n] each vote gets right.

    Only the pictures on which the votes disagree tell (McNemar 1947): were the encoders equally
    good, each would fall to either side alike, so the difference of the two counts has the
    standard error sqrt(disagreeing).
    """
    disagreeing = int((random != now).sum())
    return KnnGain(
        accuracy=100 * float(now.double().mean()),
        random=100 * float(random.double().mean()),
        margin=100 * KNN_ERRORS * math.sqrt(disagreeing) / len(now),
    )


class Watch:
    """Looks at each logged record and speaks once about each kind of trouble."""

    def __init__(self, chance_loss: float, *, after: int, ways_out: str) -> None:
        """`chance_loss` is that of an encoder that knows nothing; nothing is said before `after`.

        While the queue still holds its random start, the loss is low for the wrong reason.
        """
        self.chance_loss = chance_loss
        self.after = after
        self.ways_out = ways_out
        self.best = float("inf")
        self.said: set[str] = set()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to say the same."""
        return {"best": self.best, "said": sorted(self.said)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.best = float(state["best"])
        self.said = set(state["said"])

    def look_at_knn(self, iteration: int, gain: KnnGain, *, last: bool) -> str | None:
        """A warning where the neighbours know less than those of random weights, or None.

        At the `last` iteration, also where they know no more.
        """
        if last and gain.points <= gain.margin:
            return (
                f"the encoder ended no better than its random weights: kNN {gain.accuracy:.1f} % "
                f"against {gain.random:.1f} %, where up to {gain.margin:.1f} points either way are "
                f"chance; try {self.ways_out}"
            )
        worse = iteration >= self.after and gain.points < -gain.margin
        if worse and self._not_yet_said("knn"):
            return (
                f"kNN accuracy is {gain.accuracy:.1f} % and was {gain.random:.1f} % before the "
                "first step: the features are worse than random ones"
            )
        return None

    def look(self, record: Mapping[str, Any]) -> str | None:
        """A warning about this record, or None."""
        if record["iteration"] < self.after:
            return None
        loss, std = record["loss"], record["feature_std"]
        self.best = min(self.best, loss)
        if std < COLLAPSE_LIMIT and self._not_yet_said("collapse"):
            return f"feature std is {std:.3f} of that of random directions: they have collapsed"
        climbed = self.best < self.chance_loss - 0.5 and loss > self.chance_loss - 0.1
        if climbed and self._not_yet_said("drift"):
            return (
                f"the loss climbed from {self.best:.2f} back to {loss:.2f}, "
                f"chance is {self.chance_loss:.2f}: the encoder is drifting"
            )
        return None

    def _not_yet_said(self, kind: str) -> bool:
        new = kind not in self.said
        self.said.add(kind)
        return new
