"""Precise BN of a detector: nothing but the statistics is moved."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from moco_det.foundation.bn_statistics import precise_statistics
from moco_det.foundation.precision import Precision
from moco_det.standalone.detector import GeneralizedRCNN
from moco_det.standalone.mapper import Sample


class _TrainingForward(nn.Module):
    """A training forward over a batch of samples, as fvcore's estimator wants to call it.

    Where every BN layer is in the backbone (FPN and DC5) only the first batch goes further: there
    the heads say whether the weights have burst.
    """

    def __init__(self, model: GeneralizedRCNN, precision: Precision) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self.backbone_suffices = set(get_bn_modules(model)) <= set(model.backbone.modules())
        self.first = True

    def forward(self, samples: list[Sample]) -> None:
        images = [s.image for s in samples]
        with self.precision.autocast():
            if self.backbone_suffices and not self.first:
                self.model.backbone(self.model.batch(images)[0])
            else:
                self.model(images, [s.targets for s in samples])
        self.first = False


def update_statistics(
    model: GeneralizedRCNN, batches: Iterable[list[Sample]], iterations: int, precision: Precision
) -> None:
    """Replace the running statistics of every trained BN layer; random states are kept."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        precise_statistics(_TrainingForward(model, precision), batches, iterations)
