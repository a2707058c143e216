"""A quick linear probe: one central view per image, features once, logistic regression by L-BFGS.

Another protocol than the papers': no random crops, so its numbers stand beside no published one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from moco_det.foundation.errors import InputError
from pretrain.probe.features import TOP, Accuracy, score

# Strengths of the L2 term that are tried, strongest first: each starts from the one before.
STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5)
HELD_OUT = 0.2  # share of each class's training images that choose among them
MAX_ITERATIONS = 500
TOLERANCE = 1e-4  # largest entry of the gradient at which a fit has ended
# Products of one pass over the training set below which a GPU would only wait for launches.
SMALL = 2**22


class Fit(NamedTuple):
    """Accuracy on the test set, the chosen strength, its accuracy on the held-out part."""

    accuracy: Accuracy
    strength: float
    held_out: float | None
    converged: bool


def lbfgs_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    classes: int,
    seed: int = 0,
    strengths: Sequence[float] = STRENGTHS,
) -> Fit:
    """Standardise, choose the L2 strength on a held-out fifth of `train`, refit on all, test.

    Features [N, C] and [M, C]; mean and deviation are those of `train`. Of strengths that do
    equally well the strongest is taken; a single one is taken as it is.
    """
    if train.numel() * classes < SMALL:
        train, train_labels = train.cpu(), train_labels.cpu()
        test, test_labels = test.cpu(), test_labels.cpu()
    std, mean = torch.std_mean(train, dim=0)
    scale = torch.where(std > 1e-6, 1 / std, 0)  # a constant feature says nothing
    train, test = (train - mean) * scale, (test - mean) * scale
    chosen, best = strengths[0], None
    if len(strengths) > 1:
        chosen, best = _choose(train, train_labels, classes, sorted(strengths)[::-1], seed)
    weights, converged = fit_logistic(train, train_labels, classes=classes, strength=chosen)
    ranked = _scores(test, weights).topk(min(TOP, classes), dim=1).indices
    return Fit(score(ranked, test_labels, classes=classes), chosen, best, converged)


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    strength: float,
    start: Tensor | None = None,
) -> tuple[Tensor, bool]:
    """Weights [C + 1, classes], the bias last, and whether the fit has ended.

    They minimise the mean cross-entropy plus strength / 2 * |W|^2, the bias not counted.
    """
    shape = (features.shape[1] + 1, classes)
    weights = features.new_zeros(shape) if start is None else start.clone()
    weights.requires_grad_(True)
    solver = torch.optim.LBFGS(
        [weights],
        max_iter=MAX_ITERATIONS,
        tolerance_grad=TOLERANCE,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(_scores(features, weights), labels)
        value = value + 0.5 * strength * weights[:-1].square().sum()
        value.backward()
        return value

    value = solver.step(loss)
    if not bool(torch.isfinite(value)) or not bool(torch.isfinite(weights).all()):
        raise InputError("the logistic regression is not finite: choose a larger L2 strength")
    loss()
    assert weights.grad is not None
    # At the limits of float32 the line search ends a little above the tolerance.
    return weights.detach(), bool(weights.grad.abs().max() < 10 * TOLERANCE)


def _scores(features: Tensor, weights: Tensor) -> Tensor:
    return torch.addmm(weights[-1], features, weights[:-1])


def _choose(
    features: Tensor, labels: Tensor, classes: int, strengths: Sequence[float], seed: int
) -> tuple[float, float]:
    """The strength with the best held-out accuracy, and that accuracy in percent."""
    held = held_out(labels.cpu(), seed=seed).to(labels.device)
    if not bool(held.any()):
        raise InputError(
            "every class has one training image, so none can be held out to choose the L2 "
            "strength: give one by --l2"
        )
    weights, results = None, []
    for strength in tqdm(strengths, desc="L2 strengths", mininterval=1, leave=False):
        weights, _ = fit_logistic(
            features[~held], labels[~held], classes=classes, strength=strength, start=weights
        )
        right = _scores(features[held], weights).argmax(dim=1) == labels[held]
        results.append(100 * float(right.double().mean()))
    best = max(results)
    return strengths[results.index(best)], best


def held_out(labels: Tensor, *, seed: int) -> Tensor:
    """A mask [N] of a fifth of each class's images, at least one of a class of two or more."""
    rng = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        count = max(round(HELD_OUT * len(members)), 1) if len(members) > 1 else 0
        mask[members[torch.randperm(len(members), generator=rng)[:count]]] = True
    return mask
