"""Logistic regression: against scipy on the objective written out, and its choices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from moco_det.foundation.errors import InputError
from pretrain.probe import lbfgs
from pretrain.probe.lbfgs import lbfgs_probe


def problem(seed: int = 0, rows: int = 90, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Three overlapping clusters."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 3
    centres = 1.5 * torch.eye(3, width)
    return centres[labels] + torch.randn(rows, width, generator=rng), labels


@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_the_minimum_is_the_one_that_scipy_finds(strength: float) -> None:
    features, labels = problem()
    x, y = features.double().numpy(), labels.numpy()

    def objective(flat: np.ndarray) -> float:
        weights, bias = flat[:15].reshape(5, 3), flat[15:]
        total = 0.0
        for row, label in zip(x, y, strict=True):
            scores = row @ weights + bias
            total += np.log(np.exp(scores).sum()) - scores[label]
        return total / len(x) + strength / 2 * (weights**2).sum()

    expected = minimize(objective, np.zeros(18), method="BFGS", options={"gtol": 1e-6}).x
    got, converged = lbfgs.fit_logistic(features, labels, classes=3, strength=strength)
    assert converged
    np.testing.assert_allclose(got[:5].numpy(), expected[:15].reshape(5, 3), atol=2e-3)
    # A constant added to all biases changes nothing: their differences are what counts.
    bias, wanted = got[5].numpy(), expected[15:]
    np.testing.assert_allclose(bias - bias.mean(), wanted - wanted.mean(), atol=2e-3)


def test_clusters_are_told_apart_and_chance_is_not() -> None:
    (train, labels), (test, truth) = problem(0, 300), problem(1, 300)
    fit = lbfgs_probe(train, labels, test, truth, classes=3)
    assert fit.accuracy.top1 > 65 and fit.accuracy.top5 is None
    assert fit.strength in lbfgs.STRENGTHS and fit.held_out is not None and fit.converged
    noise = torch.randn(300, 5, generator=torch.Generator().manual_seed(2))
    assert lbfgs_probe(noise, labels, noise, truth, classes=3).accuracy.top1 < 50


def test_units_and_constant_features_do_not_matter() -> None:
    (train, labels), (test, truth) = problem(0), problem(1)
    plain = lbfgs_probe(train, labels, test, truth, classes=3, strengths=[0.1])
    units = torch.tensor([100.0, 1.0, 0.01, 3.0, 1.0])

    def odd(features: torch.Tensor) -> torch.Tensor:
        return torch.cat([features * units + 7, torch.full((len(features), 1), 5.0)], dim=1)

    other = lbfgs_probe(odd(train), labels, odd(test), truth, classes=3, strengths=[0.1])
    assert other.accuracy == plain.accuracy
    assert plain.strength == 0.1 and plain.held_out is None


def test_the_strength_is_chosen_without_the_test_set() -> None:
    train, labels = problem(0)
    few = (0.3, 0.01)
    tests = [problem(seed)[0] for seed in (1, 2)]
    fits = [lbfgs_probe(train, labels, t, labels, classes=3, seed=4, strengths=few) for t in tests]
    assert fits[0].strength == fits[1].strength and fits[0].held_out == fits[1].held_out
    assert fits[0].accuracy != fits[1].accuracy


def test_a_fifth_of_each_class_is_held_out() -> None:
    labels = torch.tensor([0] * 10 + [1] * 4 + [2])
    held = lbfgs.held_out(labels, seed=0)
    assert [int(held[labels == c].sum()) for c in range(3)] == [2, 1, 0]
    assert torch.equal(held, lbfgs.held_out(labels, seed=0))
    assert not torch.equal(held, lbfgs.held_out(labels, seed=1))


def test_classes_of_one_image_leave_none_to_hold_out() -> None:
    train, labels = problem(0, rows=3)
    with pytest.raises(InputError, match="none can be held out"):
        lbfgs_probe(train, labels, train, labels, classes=3)
