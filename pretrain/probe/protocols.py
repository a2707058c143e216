"""One call a protocol: the accuracy, and all that must be equal for two of them to be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from moco_det.foundation.errors import InputError
from pretrain import data
from pretrain.probe.accuracy import Accuracy
from pretrain.probe.classifier import Saving, Schedule
from pretrain.probe.features import extract
from pretrain.probe.finetune import finetune_probe
from pretrain.probe.knn import concerns, knn_accuracy
from pretrain.probe.lbfgs import HELD_OUT, STRENGTHS, lbfgs_probe
from pretrain.probe.linear import linear_probe
from pretrain.probe.weights import Start


@dataclass(frozen=True)
class Measured:
    """What a probe gave. `seed` is the one that the trial depends on, `extra` numbers to keep."""

    accuracy: Accuracy
    settings: dict[str, Any]
    seed: int
    extra: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def measure_knn(
    start: Start,
    train: data.ImageList,
    test: data.ImageList,
    *,
    size: int,
    k: int,
    temperature: float,
    features: str,
    batch: int,
    bfloat16: bool,
) -> Measured:
    """The weighted vote; there is no chance in it but the seed that the weights came from."""
    if features == "head" and not start.embeds:
        raise InputError("features head: these weights have no trained embedding, use pooled")
    voters = min(k, len(train))
    accuracy = knn_accuracy(
        start.encoder,
        train,
        test,
        size=size,
        k=voters,
        temperature=temperature,
        features=features,
        batch=batch,
        bfloat16=bfloat16,
    )
    settings = {
        "arch": start.arch,
        "size": size,
        "features": features,
        "k": voters,
        "temperature": temperature,
    }
    return Measured(accuracy, settings, start.seed or 0, warnings=concerns(train, k=k))


def measure_lbfgs(
    start: Start,
    train: data.ImageList,
    test: data.ImageList,
    *,
    size: int,
    strengths: Sequence[float] | None,
    seed: int,
    batch: int,
    bfloat16: bool,
) -> Measured:
    """Logistic regression on the pooled features of central views; `strengths` of the L2 term."""
    (known, known_labels), (asked, asked_labels) = (
        extract(start.encoder, images, size=size, batch=batch, bfloat16=bfloat16)
        for images in (train, test)
    )
    tried = sorted(set(strengths or STRENGTHS), reverse=True)
    fit = lbfgs_probe(
        known,
        known_labels,
        asked,
        asked_labels,
        classes=len(train.classes),
        seed=seed,
        strengths=tried,
    )
    warnings = []
    if len(tried) > 1 and fit.strength in (tried[0], tried[-1]):
        warnings.append(f"the chosen L2 strength {fit.strength:g} is the last of those tried")
    if not fit.converged:
        warnings.append("L-BFGS stopped before the gradient was small")
    settings = {"arch": start.arch, "size": size, "l2": tried, "held_out": HELD_OUT}
    extra = {"l2": fit.strength, "held_out": fit.held_out}
    return Measured(fit.accuracy, settings, seed, extra, warnings)


def measure_sgd(
    start: Start,
    train: data.ImageList,
    test: data.ImageList,
    *,
    frozen: bool,
    size: int,
    schedule: Schedule,
    seed: int,
    workers: int,
    cache_mb: int,
    bfloat16: bool,
    saving: Saving | None,
) -> Measured:
    """The linear probe, or fine-tuning where the trunk is not frozen."""
    probe = linear_probe if frozen else finetune_probe
    accuracy = probe(
        start.encoder,
        train,
        test,
        size=size,
        schedule=schedule,
        seed=seed,
        workers=workers,
        cache_mb=cache_mb,
        bfloat16=bfloat16,
        saving=saving,
    )
    milestones = {"milestones": list(schedule.milestones)}
    settings = {"arch": start.arch, "size": size, **asdict(schedule), **milestones}
    return Measured(accuracy, settings, seed)
