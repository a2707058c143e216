"""Watching a run: warnings about what short contrastive runs die of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# A run here collapsed at K/batch * (1-m) = 0.32 within 200 steps; MoCo's own setting is 0.256.
DRIFT_LIMIT = 0.3
# Feature std relative to that of random directions; that collapsed run ended at 0.06.
COLLAPSE_LIMIT = 0.1
# Standard errors by which two votes on the same pictures must differ to be called different.
KNN_ERRORS = 2.0
# What made a run of at most a few thousand steps learn: a fast key encoder, a queue of few batches.
SHORT_MOMENTUM, SHORT_QUEUE = 0.97, 4


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


def what_to_try(method: str, *, batch: int, size: int, momentum: float, splits: int) -> str:
    """The ways out for a run that learned nothing, in order, without those it has taken."""
    found = ["more steps first (SOLVER.MAX_ITER or SOLVER.EPOCHS)"]
    if method == "moco" and (momentum > SHORT_MOMENTUM or size > SHORT_QUEUE * batch):
        found.append(
            f"for a short run MOCO.M {SHORT_MOMENTUM:g} and MOCO.K {SHORT_QUEUE * batch} "
            f"({SHORT_QUEUE} batches)"
        )
    if method == "moco" and splits > 1:
        found.append("ENCODER.BN_SPLITS 1")
    return "; then ".join(found)


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
        if iteration < self.after or gain.points >= -gain.margin or last or "knn" in self.said:
            return None
        self.said.add("knn")
        return (
            f"kNN accuracy is {gain.accuracy:.1f} % and was {gain.random:.1f} % before the first "
            "step: the features are worse than random ones"
        )

    def look(self, record: Mapping[str, Any]) -> str | None:
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
