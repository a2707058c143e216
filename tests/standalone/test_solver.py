"""The learning rate by hand, and which parameter learns and decays how."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from moco_det.settings.optimizers import parameter_groups
from moco_det.standalone.solver import LearningRate, Solver

STEPS = LearningRate(
    max_iter=100,
    steps=[60, 80],
    gamma=0.1,
    cosine_end=None,
    warmup_iters=10,
    warmup_factor=0.001,
    warmup_method="linear",
)
COSINE = replace(STEPS, cosine_end=0.0)


@pytest.mark.parametrize(
    ("iteration", "factor"),
    [
        (0, 0.001),
        (5, 0.001 + 0.999 * 0.5),
        (9, 0.001 + 0.999 * 0.9),
        (10, 1.0),
        (59, 1.0),
        (60, 0.1),
        (79, 0.1),
        (80, 0.01),
        (99, 0.01),
    ],
)
def test_warm_up_then_steps(iteration: int, factor: float) -> None:
    assert STEPS(iteration) == pytest.approx(factor, rel=1e-12)


def test_warm_up_leads_to_the_cosine_where_it_ends() -> None:
    after = 0.5 * (1 + math.cos(math.pi * 0.1))  # at iteration 10 of 100
    assert COSINE(0) == pytest.approx(0.001)
    assert COSINE(5) == pytest.approx(0.001 + (after - 0.001) * 0.5)
    assert COSINE(10) == pytest.approx(after)
    assert COSINE(50) == pytest.approx(0.5)
    assert COSINE(100) == pytest.approx(0.0)
    assert replace(COSINE, cosine_end=0.2)(50) == pytest.approx(0.2 + 0.8 * 0.5)


def test_constant_warm_up_stays_and_none_starts_at_once() -> None:
    constant = replace(STEPS, warmup_method="constant")
    assert [constant(i) for i in (0, 9, 10)] == pytest.approx([0.001, 0.001, 1.0])
    assert replace(STEPS, warmup_iters=0)(0) == 1.0


def test_a_warm_up_longer_than_the_run_is_cut_to_the_run() -> None:
    # it climbs over the 100 iterations there are, to where the schedule ends: 0.1 ** 2
    long = replace(STEPS, warmup_iters=1000)
    assert long(0) == pytest.approx(0.001)
    assert long(50) == pytest.approx(0.001 + (0.01 - 0.001) * 0.5)


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def groups_of(module: nn.Module, **changes: float | None) -> dict[tuple[float, float], list[int]]:
    settings: dict[str, float | None] = {
        "weight_decay": 0.1,
        "weight_decay_norm": 0.0,
        "weight_decay_bias": None,
        "bias_lr_factor": 1.0,
    }
    chosen = settings | changes
    groups = parameter_groups(
        module,
        base_lr=1.0,
        weight_decay=chosen["weight_decay"] or 0.0,
        weight_decay_norm=chosen["weight_decay_norm"],
        weight_decay_bias=chosen["weight_decay_bias"],
        bias_lr_factor=chosen["bias_lr_factor"] or 0.0,
    )
    number = {id(p): i for i, p in enumerate(module.parameters())}
    return {(g["lr"], g["weight_decay"]): [number[id(p)] for p in g["params"]] for g in groups}


def test_norms_do_not_decay_and_biases_do_as_everything_else() -> None:
    # 0, 1: convolution; 2, 3: norm; 4, 5: linear
    assert groups_of(model()) == {(1.0, 0.1): [0, 1, 4, 5], (1.0, 0.0): [2, 3]}


def test_norms_decay_as_everything_else_without_a_value_of_their_own() -> None:
    assert groups_of(model(), weight_decay_norm=None) == {(1.0, 0.1): [0, 1, 2, 3, 4, 5]}


def test_biases_may_learn_faster_and_decay_apart() -> None:
    assert groups_of(model(), weight_decay_bias=0.2, bias_lr_factor=2.0) == {
        (1.0, 0.1): [0, 4],
        (2.0, 0.2): [1, 3, 5],
        (1.0, 0.0): [2],
    }


def test_frozen_and_shared_parameters_are_not_listed_twice_or_at_all() -> None:
    layer = nn.Linear(2, 2)
    shared = nn.Sequential(layer, layer, nn.Linear(2, 2))
    shared[2].weight.requires_grad = False
    assert groups_of(shared) == {(1.0, 0.1): [0, 1, 3]}


def test_the_solver_sets_every_groups_rate_by_the_same_factor() -> None:
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(
        [{"params": parameters[:1], "lr": 0.5}, {"params": parameters[1:], "lr": 1.0}], lr=0.5
    )
    solver = Solver(optimizer, STEPS)
    solver.set_iteration(3)
    assert solver.set_iteration(60) == pytest.approx(0.05)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.05, 0.1])
