"""The whole network trained on the labels, from a pre-trained or a random trunk.

MoCo paper (He et al. 2020), Appendix A.6 and A.7: with ImageNet's labels a rate of 0.03 from
pre-trained weights and 0.1 from random ones; A.7 does not give the epochs, A.6 divides by ten at
70 % and 90 % of 100.
"""

from __future__ import annotations

from pretrain import data
from pretrain.encoders import Encoder
from pretrain.probe.accuracy import Accuracy
from pretrain.probe.classifier import Classifier, Saving, Schedule, evaluate, fit

PAPER = Schedule(
    epochs=100,
    batch=256,
    lr=0.03,
    head_lr=0.03,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="step",
    milestones=(70, 90),
    gamma=0.1,
    min_scale=0.08,
)


def finetune_probe(
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
    """Train trunk and linear layer in place, on the encoder's device, and test them.

    Batch norm learns with the batch's statistics. Raises InputError where the loss is not finite.
    """
    device = next(encoder.parameters()).device
    classifier = Classifier(encoder, classes=len(train.classes), frozen=False, seed=seed).to(device)
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
    return evaluate(classifier, test, size=size, batch=schedule.batch, bfloat16=bfloat16)
