"""One call per protocol: the accuracy, and what must be equal for two of them to be compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moco_det.foundation.errors import InputError
from pretrain.probe.classifier import Saving, train_and_test
from pretrain.probe.features import Accuracy, Pair, extract, score
from pretrain.probe.knn import concerns, vote
from pretrain.probe.lbfgs import HELD_OUT, STRENGTHS, lbfgs_probe
from pretrain.probe.options import Conditions, KnnOptions, LbfgsOptions, LinearOptions, Options
from pretrain.probe.weights import Start


@dataclass(frozen=True)
class Measured:
    """What a probe gave. `seed` is the one that the trial depends on, `extra` numbers to keep."""

    accuracy: Accuracy
    settings: dict[str, Any]
    seed: int
    extra: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    folder: Path | None = None  # where a classifier was kept


def run_name(options: Options, start: Start, size: int, seed: int) -> str:
    """A row's `run`: protocol, arm, pre-training steps where they are known, size, seed."""
    neighbours = str(options.k) if isinstance(options, KnnOptions) else ""
    steps = "" if start.iterations is None else f"_{start.iterations}"
    name = f"{options.protocol}{neighbours}_{start.name}{steps}_{size}px_seed{seed}"
    return name.replace("/", "-")


def measure(options: Options, start: Start, pair: Pair, how: Conditions) -> Measured:
    """The accuracy of one encoder, on its device.

    Raises InputError for what the protocol cannot measure of these weights or images.
    """
    if isinstance(options, LinearOptions):
        return _by_sgd(options, start, pair, how)
    if isinstance(options, LbfgsOptions):
        return _by_lbfgs(options, start, pair, how)
    return _by_neighbours(options, start, pair, how)


def _by_neighbours(options: KnnOptions, start: Start, pair: Pair, how: Conditions) -> Measured:
    """There is no chance in the vote but the seed that the weights came from."""
    if options.features == "head" and not start.embeds:
        raise InputError("features head: these weights have no trained embedding, use pooled")
    (known, labels), (asked, truth) = (
        extract(start.encoder, images, how, options.features) for images in pair
    )
    train = pair[0]
    k, classes = min(options.k, len(train)), len(train.classes)
    ranked = vote(known, labels, asked, classes=classes, k=k, temperature=options.temperature)
    settings = {**asdict(options), "k": k, "arch": start.arch, "size": how.size}
    warnings = concerns(train, k=options.k)
    accuracy = score(ranked, truth, classes=classes)
    return Measured(accuracy, settings, start.seed or 0, warnings=warnings)


def _by_lbfgs(options: LbfgsOptions, start: Start, pair: Pair, how: Conditions) -> Measured:
    """Logistic regression on the pooled features of central views."""
    known, asked = (extract(start.encoder, images, how) for images in pair)
    tried = sorted(set(options.l2 or STRENGTHS), reverse=True)
    classes = len(pair[0].classes)
    fit = lbfgs_probe(*known, *asked, classes=classes, seed=how.seed, strengths=tried)
    warnings = []
    if len(tried) > 1 and fit.strength in (tried[0], tried[-1]):
        warnings.append(f"the chosen L2 strength {fit.strength:g} is the last of those tried")
    if not fit.converged:
        warnings.append("L-BFGS stopped before the gradient was small")
    settings = {"arch": start.arch, "size": how.size, "l2": tried, "held_out": HELD_OUT}
    extra = {"l2": fit.strength, "held_out": fit.held_out}
    return Measured(fit.accuracy, settings, how.seed, extra, warnings)


def _by_sgd(options: LinearOptions, start: Start, pair: Pair, how: Conditions) -> Measured:
    """The linear probe, or fine-tuning: top-1 after the last epoch, none is chosen by the test."""
    folder = options.output or Path("runs/probe") / run_name(options, start, how.size, how.seed)
    origin = start.sha256 or f"random {start.arch} of seed {how.seed}"
    saving = Saving(folder / "probe.pth", options.resume, origin)
    accuracy = train_and_test(start.encoder, pair, options, how, saving)
    settings = {"arch": start.arch, "size": how.size, **options.settings(how.batch)}
    return Measured(accuracy, settings, how.seed, folder=folder)
