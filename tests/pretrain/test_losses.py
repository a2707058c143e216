from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pretrain.losses import info_nce, info_nce_logits


def features(n: int, k: int, c: int, *, per_query: bool) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    shapes = [(n, c), (n, c), (n, k, c) if per_query else (k, c)]
    return [F.normalize(torch.randn(s, generator=rng, dtype=torch.float64), dim=-1) for s in shapes]


def naive(q: torch.Tensor, k_pos: torch.Tensor, negatives: torch.Tensor, t: float) -> float:
    """Eqn. 1, one query and one key at a time."""
    total = 0.0
    for i in range(len(q)):
        rows = negatives if negatives.dim() == 2 else negatives[i]
        positive = math.exp(float(q[i] @ k_pos[i]) / t)
        below = positive + sum(math.exp(float(q[i] @ row) / t) for row in rows)
        total += -math.log(positive / below)
    return total / len(q)


@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_info_nce_equals_the_equation_written_out(per_query: bool, temperature: float) -> None:
    q, k, negatives = features(5, 7, 4, per_query=per_query)
    assert float(info_nce(q, k, negatives, temperature)) == pytest.approx(
        naive(q, k, negatives, temperature), rel=1e-10
    )


@pytest.mark.parametrize("size", [1, 15, 1024])
def test_equal_similarities_give_ln_k_plus_1(size: int) -> None:
    q = F.normalize(torch.ones(3, 8), dim=1)
    assert float(info_nce(q, q, q[:1].expand(size, 8), 0.07)) == pytest.approx(
        math.log(size + 1), rel=1e-5
    )


def test_a_perfect_positive_and_opposite_negatives_have_the_closed_form() -> None:
    q = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    # -ln(e^(1/T) / (e^(1/T) + 3 e^(-1/T))) = ln(1 + 3 e^(-2/T)), T = 0.5
    loss = info_nce(q, q, -q.expand(3, 2), 0.5)
    assert float(loss) == pytest.approx(math.log(1 + 3 * math.exp(-4)), rel=1e-12)


def test_gradient_of_q_is_the_softmax_residual_times_the_keys() -> None:
    q, k, negatives = features(4, 6, 3, per_query=False)
    q.requires_grad_()
    info_nce(q, k, negatives, 0.2).backward()
    with torch.no_grad():
        p = info_nce_logits(q, k, negatives, 0.2).softmax(dim=1)
        expected = ((p[:, :1] - 1) * k + p[:, 1:] @ negatives) / 0.2 / 4
    torch.testing.assert_close(q.grad, expected)


@pytest.mark.parametrize("per_query", [False, True])
def test_gradients_pass_gradcheck(per_query: bool) -> None:
    inputs = [x.requires_grad_() for x in features(3, 4, 2, per_query=per_query)]
    assert torch.autograd.gradcheck(lambda a, b, c: info_nce(a, b, c, 0.5), inputs)
