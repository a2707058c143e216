"""How often a probe is right: top-1, top-5 and the mean over classes, in percent."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TOP = 5


class Accuracy(NamedTuple):
    """Percent. `top5` is None below five classes; `mean_class` weighs every class alike."""

    top1: float
    top5: float | None
    mean_class: float

    def __str__(self) -> str:
        return "  ".join(f"{k} {v:.2f}" for k, v in self._asdict().items() if v is not None)


def score(ranked: Tensor, labels: Tensor, *, classes: int) -> Accuracy:
    """Accuracy of class numbers [N, r], best first (r = min(5, classes)), against labels [N]."""
    hits = ranked == labels[:, None]  # N x r
    right = hits[:, 0].double()
    images = torch.bincount(labels, minlength=classes)
    per_class = torch.bincount(labels, weights=right, minlength=classes) / images
    return Accuracy(
        top1=100 * float(right.mean()),
        top5=100 * float(hits.any(dim=1).double().mean()) if classes >= TOP else None,
        mean_class=100 * float(per_class[images > 0].mean()),
    )
