"""A linear classifier on a frozen trunk: the protocol that the papers report.

MoCo paper (He et al. 2020), Section 4.1: SGD over random crops, rate 30, no weight decay, batch
256, 100 epochs, the rate divided by ten at epochs 60 and 80. Top-1 is that of one central crop
after the last epoch; no epoch is chosen by the test set.
"""

from __future__ import annotations

import torch

from pretrain import data
from pretrain.encoders import Encoder
from pretrain.probe.accuracy import Accuracy
from pretrain.probe.classifier import Classifier, Saving, Schedule, evaluate, fit

PAPER = Schedule(
    epochs=100,
    batch=256,
    lr=0.0,
    head_lr=30.0,
    momentum=0.9,
    weight_decay=0.0,
    schedule="step",
    milestones=(60, 80),
    gamma=0.1,
    min_scale=0.08,
)


def linear_probe(
    encoder: Encoder,
    train: data.ImageList,
    test: data.ImageList,
    *,
    size: int,
    schedule: Schedule = PAPER,
    seed: int = 0,
    workers: int = 2,
    bfloat16: bool = False,
    cache_mb: int = 0,
    saving: Saving | None = None,
) -> Accuracy:
    """Train the linear layer on the encoder's device and test it; the trunk must not move.

    Raises InputError where the loss is not finite, RuntimeError where the trunk is not bit for bit
    what it was.
    """
    device = next(encoder.parameters()).device
    classifier = Classifier(encoder, classes=len(train.classes), frozen=True, seed=seed).to(device)
    before = {name: value.clone() for name, value in encoder.trunk.state_dict().items()}
    fit(
        classifier,
        train,
        schedule,
        size=size,
        seed=seed,
        workers=workers,
        bfloat16=bfloat16,
        cache_mb=cache_mb,
        saving=saving,
    )
    for name, value in encoder.trunk.state_dict().items():
        if not torch.equal(value, before[name]):
            raise RuntimeError(f"{name} of the frozen trunk has changed")
    return evaluate(classifier, test, size=size, batch=schedule.batch, bfloat16=bfloat16)
