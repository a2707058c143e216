"""What every method is: an nn.Module that turns a batch into a loss, and what it writes after.

The order of a step, which the training loop keeps:

1. `prepare(batch)`, once over the process's whole share and without a gradient;
2. `forward(part, keys of the part)` and its backward pass, for each part of the share;
3. the optimizer's step;
4. `after_step(indices, features)`, once over the whole share.

Letters: n images of a process, N of all processes, C feature dimensions, K negatives,
m momentum, T temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.encoders import Encoder

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """A process's share of a step on its device.

    `views` are [n, 3, H, W], normalised; `indices` [n] number the images; `labels` [n] or None.
    """

    views: tuple[Tensor, ...]
    indices: Tensor
    labels: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """All of them, in one order."""
        return [*self.views, self.indices, *([] if self.labels is None else [self.labels])]

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch of what `change` makes of every tensor."""
        labels = None if self.labels is None else change(self.labels)
        return Batch(tuple(change(view) for view in self.views), change(self.indices), labels)

    def part(self, start: int, stop: int) -> Batch:
        """Images start..stop-1."""
        return self.each(lambda tensor: tensor[start:stop])


class MethodOutput(NamedTuple):
    """What `Method.forward` returns."""

    loss: Tensor  # scalar, the mean over the images, with its graph
    metrics: Metrics  # detached scalars to watch
    features: Tensor  # n x C, detached: what `after_step` will write


class Method(nn.Module):
    """What the training loop asks of a method; `encoder` is the one that is kept."""

    views = 1  # of each image, that a batch must have
    name = ""
    use_bfloat16 = False  # whether the trunks compute in it
    passes = 3  # of an image through a trunk in a step; a backward one counts twice
    parts = 1  # that a process's share is computed in
    chance_loss: float  # of an encoder that knows nothing
    dictionary_size: int | None = None  # the negatives of a query, None where there are none

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def embed(self, view: Tensor, encoder: Encoder | None = None) -> Tensor:
        """The L2-normalised features [n, C] of a view."""
        return F.normalize((encoder or self.encoder)(view, bfloat16=self.use_bfloat16), dim=1)

    def accumulate(self, parts: int) -> None:
        """Prepare for a share that comes to `forward` in `parts` equal parts; called once.

        The groups of batch norm are dealt out to the parts, so that they, and with them loss and
        gradient, are those of the whole share. (Running statistics take more, smaller steps.)
        """
        self.parts = parts
        self.encoder.set_bn_splits(self.encoder.bn_splits // parts)

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Tensor | None:
        """What `forward` needs that belongs to the whole share: a tensor [n, ...] or None.

        It is cut into parts as the batch is.
        """
        return None

    def forward(self, batch: Batch, keys: Tensor | None) -> MethodOutput:
        """The loss of a batch, or of a part of it with the same part of `prepare`'s tensor."""
        raise NotImplementedError

    @torch.no_grad()
    def after_step(self, indices: Tensor, features: Tensor) -> None:
        """What follows the optimizer's step, with the share's indices [n] and features [n, C]."""

    @property
    def settled(self) -> bool:
        """Whether every later step makes the same calls, whatever the numbers are."""
        return True

    def notes(self) -> list[str]:
        """Lines for the log before the first step."""
        return []

    def warnings(self, *, batch: int, images: int) -> list[str]:
        """What speaks against these settings for a global batch and a number of images."""
        return []

    def ways_out(self, *, batch: int) -> list[str]:
        """What to try where a run learned nothing, in order, without what it has taken."""
        return []

    def gauges(self) -> dict[str, float]:
        """Numbers for the record of a logged step."""
        return {}


@torch.no_grad()
def contrastive_metrics(
    q: Tensor, positive: Tensor, negative: Tensor, own: Tensor | None = None
) -> Metrics:
    """Scalars to watch, from queries [n, C] and similarities [n] and [n, K].

    Accuracy is that of the (K+1)-way choice, in percent. `own` [n, K] marks entries of `negative`
    that are the query's own image and don't count.
    """
    rivals, others = negative, negative.mean()
    if own is not None:
        rivals = negative.masked_fill(own, -math.inf)
        others = negative.masked_fill(own, 0.0).sum() / (~own).sum().clamp(min=1)
    return {
        "accuracy": 100.0 * (rivals.amax(dim=1) < positive).float().mean(),
        "positive_similarity": positive.mean(),
        "negative_similarity": others,
        "feature_std": feature_std(q),
    }


@torch.no_grad()
def metrics_of_all(q: Tensor, similarity: Tensor, own: Tensor) -> Metrics:
    """`contrastive_metrics` from similarities [n, N] whose column `own` [n] is the positive."""
    positive = similarity.gather(1, own[:, None])[:, 0]
    others = similarity.numel() - len(similarity)
    return {
        "accuracy": 100.0 * (similarity.argmax(dim=1) == own).float().mean(),
        "positive_similarity": positive.mean(),
        "negative_similarity": (similarity.sum() - positive.sum()) / max(1, others),
        "feature_std": feature_std(q),
    }


@torch.no_grad()
def class_metrics(scores: Tensor, labels: Tensor, features: Tensor) -> Metrics:
    """Scalars to watch of a classifier with `scores` [n, classes] of features [n, C]."""
    right = scores.argmax(dim=1) == labels
    return {"accuracy": 100.0 * right.float().mean(), "feature_std": feature_std(features)}


def feature_std(features: Tensor) -> Tensor:
    """Mean over dimensions of the batch's std, times sqrt(C): 1 when spread out, 0 collapsed.

    `features` [n, C] are L2-normalised; unit vectors in random directions have std 1/sqrt(C).
    """
    return features.detach().std(dim=0, correction=0).mean() * math.sqrt(features.shape[1])
