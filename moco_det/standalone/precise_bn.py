"""BN statistics over many batches with the weights standing still (Wu & Johnson 2021, section 3).

fvcore's estimator does the work on each process; the processes then agree on one result, which
fvcore alone leaves different on every rank.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn
from tqdm import tqdm

from moco_det.foundation import collectives
from moco_det.foundation.bn_statistics import average_over_processes
from moco_det.foundation.precision import Precision
from moco_det.standalone.detector import GeneralizedRCNN
from moco_det.standalone.mapper import Sample


class _Step(nn.Module):
    """A training forward over a batch of samples, as fvcore's estimator wants to call it.

    Where every BN layer is in the backbone (FPN and DC5) only the first batch goes further: there
    the heads say whether the weights have burst.
    """

    def __init__(self, model: GeneralizedRCNN, precision: Precision, bar: tqdm) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self.bar = bar
        in_backbone = set(model.backbone.modules())
        self.backbone_suffices = all(layer in in_backbone for layer in get_bn_modules(model))
        self.first = True

    def forward(self, samples: list[Sample]) -> None:
        images = [s.image for s in samples]
        with self.precision.autocast():
            if self.backbone_suffices and not self.first:
                self.model.backbone(self.model.batch(images)[0])
            else:
                self.model(images, [s.targets for s in samples])
        self.first = False
        self.bar.update()


def update_statistics(
    model: GeneralizedRCNN, batches: Iterable[list[Sample]], iterations: int, precision: Precision
) -> None:
    """Replace the running statistics of every trained BN layer; random states are kept."""
    layers = get_bn_modules(model)
    if not layers:
        return
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with (
        torch.random.fork_rng(devices=devices),
        tqdm(
            desc="precise BN",
            total=iterations,
            unit="batch",
            mininterval=1,
            disable=collectives.rank() != 0,
        ) as bar,
    ):
        update_bn_stats(_Step(model, precision, bar), batches, iterations)
    average_over_processes(layers)
