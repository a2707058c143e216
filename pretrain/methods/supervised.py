"""Cross-entropy over labels: the arm that contrastive pre-training is compared with."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from pretrain.encoders import Encoder
from pretrain.methods.base import Batch, Method, MethodOutput, class_metrics


class Supervised(Method):
    """Classification of one view; the head's output are the scores of the classes."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.chance_loss = math.log(encoder.dim)

    def forward(self, batch: Batch, keys: Tensor | None) -> MethodOutput:
        assert batch.labels is not None
        features = self.encoder.features(batch.views[0], bfloat16=self.use_bfloat16)
        scores = self.encoder.head(features)  # n x classes
        features = F.normalize(features.detach(), dim=1)
        metrics = class_metrics(scores, batch.labels, features)
        return MethodOutput(F.cross_entropy(scores, batch.labels), metrics, features)
