"""Cross-entropy over labels: the arm that contrastive pre-training is compared with."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from pretrain.encoders import Encoder
from pretrain.methods.base import Batch, Method, Outcome, feature_std


class Supervised(Method):
    """Classification of one view; the head's output are the scores of the classes."""

    views = 1

    def __init__(
        self, *, encoder: Encoder, classes: int, bfloat16: bool = False, name: str = "supervised"
    ) -> None:
        super().__init__()
        self.name = name
        self.encoder = encoder
        self.classes = classes
        self.use_bfloat16 = bfloat16

    def forward(self, batch: Batch, keys: Tensor | None) -> Outcome:
        assert batch.labels is not None
        features = self.encoder.features(batch.views[0], bfloat16=self.use_bfloat16)
        scores = self.encoder.head(features)  # n x classes
        right = scores.detach().argmax(dim=1) == batch.labels
        features = F.normalize(features.detach(), dim=1)
        metrics = {"accuracy": 100.0 * right.float().mean(), "feature_std": feature_std(features)}
        return Outcome(F.cross_entropy(scores, batch.labels), metrics, features)

    @property
    def chance_loss(self) -> float:
        return math.log(self.classes)
