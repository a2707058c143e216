"""Watching a run: warnings about what short contrastive runs die of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A run here collapsed at K/batch * (1-m) = 0.32 within 200 steps; MoCo's own setting is 0.256.
DRIFT_LIMIT = 0.3
# Feature std relative to that of random directions; that collapsed run ended at 0.06.
COLLAPSE_LIMIT = 0.1
# Percent below the random encoder's accuracy that are more than the vote's own scatter.
KNN_MARGIN = 2.0


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
        self.random_knn: float | None = None

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to say the same."""
        return {"best": self.best, "said": sorted(self.said), "random_knn": self.random_knn}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.best = float(state["best"])
        self.said = set(state["said"])
        self.random_knn = state["random_knn"]

    def look_at_knn(self, iteration: int, accuracy: float) -> str | None:
        """A warning where the neighbours know less than those of the random encoder, or None.

        The accuracy at iteration 0 is the random encoder's.
        """
        if iteration == 0:
            self.random_knn = accuracy
            return None
        low = self.random_knn is not None and accuracy < self.random_knn - KNN_MARGIN
        if iteration < self.after or not low or "knn" in self.said:
            return None
        self.said.add("knn")
        return (
            f"kNN accuracy is {accuracy:.1f} % and was {self.random_knn:.1f} % before the first "
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
