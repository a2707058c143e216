"""Losses against the papers' equations written out in float64, closed forms and gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.losses import (
    info_nce,
    log_z_estimate,
    nce,
    nce_chance,
    proximal,
    softmax_over_all,
)
from tests.pretrain.small_methods import similarities


def unit(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(shape, generator=rng, dtype=torch.float64), dim=-1)


def features(n: int, k: int, c: int, *, per_query: bool) -> tuple[Tensor, Tensor, Tensor]:
    return unit(n, c), unit(n, c, seed=1), unit(*((n, k, c) if per_query else (k, c)), seed=2)


def infonce_of(q: Tensor, k_pos: Tensor, negatives: Tensor, t: float) -> Tensor:
    return info_nce(*similarities(q, k_pos, negatives), t)


def naive_info_nce(q: Tensor, k_pos: Tensor, negatives: Tensor, t: float) -> float:
    """MoCo paper, Eqn. 1, one query and one key at a time."""
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
    assert float(infonce_of(q, k, negatives, temperature)) == pytest.approx(
        naive_info_nce(q, k, negatives, temperature), rel=1e-10
    )


@pytest.mark.parametrize("size", [1, 15, 1024])
def test_equal_similarities_give_ln_k_plus_1(size: int) -> None:
    loss = info_nce(torch.full((3,), 0.5), torch.full((3, size), 0.5), 0.07)
    assert float(loss) == pytest.approx(math.log(size + 1), rel=1e-5)


def test_a_perfect_positive_and_opposite_negatives_have_the_closed_form() -> None:
    q = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    # -ln(e^(1/T) / (e^(1/T) + 3 e^(-1/T))) = ln(1 + 3 e^(-2/T)), T = 0.5
    loss = infonce_of(q, q, -q.expand(3, 2), 0.5)
    assert float(loss) == pytest.approx(math.log(1 + 3 * math.exp(-4)), rel=1e-12)


def test_a_negative_of_minus_infinity_is_as_if_it_were_not_there() -> None:
    q, k, negatives = features(4, 6, 3, per_query=False)
    positive, negative = similarities(q.requires_grad_(), k, negatives)
    gone = torch.zeros(4, 6, dtype=torch.bool)
    gone[:, 2] = True
    masked = info_nce(positive, negative.masked_fill(gone, -math.inf), 0.2)
    without = info_nce(positive, negative[:, [0, 1, 3, 4, 5]], 0.2)
    torch.testing.assert_close(masked, without)
    got, wanted = (torch.autograd.grad(x, q, retain_graph=True)[0] for x in (masked, without))
    torch.testing.assert_close(got, wanted)


def test_all_negatives_masked_costs_nothing() -> None:
    loss = info_nce(torch.tensor([0.3]), torch.tensor([[-math.inf, -math.inf]]), 0.1)
    assert float(loss) == 0.0


def test_gradient_of_q_is_the_softmax_residual_times_the_keys() -> None:
    q, k, negatives = features(4, 6, 3, per_query=False)
    q.requires_grad_()
    infonce_of(q, k, negatives, 0.2).backward()
    with torch.no_grad():
        p = (torch.cat([(q * k).sum(1, keepdim=True), q @ negatives.t()], 1) / 0.2).softmax(dim=1)
        expected = ((p[:, :1] - 1) * k + p[:, 1:] @ negatives) / 0.2 / 4
    torch.testing.assert_close(q.grad, expected)


@pytest.mark.parametrize("per_query", [False, True])
def test_gradients_of_info_nce_pass_gradcheck(per_query: bool) -> None:
    inputs = [x.requires_grad_() for x in features(3, 4, 2, per_query=per_query)]
    assert torch.autograd.gradcheck(lambda a, b, c: infonce_of(a, b, c, 0.5), inputs)


def test_softmax_over_all_is_equation_2_of_instance_discrimination() -> None:
    q, bank, own, t = unit(3, 4), unit(6, 4, seed=1), torch.tensor([5, 0, 2]), 0.07
    expected = 0.0
    for i in range(3):
        weights = [math.exp(float(row @ q[i]) / t) for row in bank]
        expected -= math.log(weights[int(own[i])] / sum(weights)) / 3
    assert float(softmax_over_all(q @ bank.t(), own, t)) == pytest.approx(expected, rel=1e-10)


def test_softmax_over_the_batch_is_info_nce_with_the_other_keys() -> None:
    q, keys = unit(4, 3), unit(4, 3, seed=1)
    others = torch.stack([torch.cat([keys[:i], keys[i + 1 :]]) for i in range(4)])
    torch.testing.assert_close(
        softmax_over_all(q @ keys.t(), torch.arange(4), 0.2), infonce_of(q, keys, others, 0.2)
    )


def naive_nce(f: Tensor, data: Tensor, noise: Tensor, t: float, z: float, n: int) -> Tensor:
    """Wu et al. 2018, Eq. 4-7, a probability at a time: f [N, C], data [N, C], noise [N, m, C]."""
    m = noise.shape[1]
    uniform = 1.0 / n

    def h(v: Tensor, feature: Tensor) -> Tensor:
        p = torch.exp(v @ feature / t) / z
        return p / (p + m * uniform)

    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(f)):
        total = total - torch.log(h(data[i], f[i]))
        for sample in noise[i]:
            total = total - torch.log(1 - h(sample, f[i]))
    return total / len(f)


def nce_of(f: Tensor, data: Tensor, noise: Tensor, t: float, z: float, n: int) -> Tensor:
    log_z = torch.tensor(math.log(z), dtype=f.dtype)
    return nce(*similarities(f, data, noise), temperature=t, log_z=log_z, images=n)


@pytest.mark.parametrize(("t", "z"), [(0.07, 40.0), (0.07, 4e6), (0.5, 120.0)])
def test_nce_and_its_gradient_equal_the_equations_written_out(t: float, z: float) -> None:
    f, data, noise = unit(4, 8), unit(4, 8, seed=1), unit(4, 5, 8, seed=2)
    f.requires_grad_()
    expected = naive_nce(f, data, noise, t, z, 50)
    got = nce_of(f, data, noise, t, z, 50)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(got, f)[0], torch.autograd.grad(expected, f)[0], rtol=1e-8, atol=1e-10
    )


def test_nce_in_float32_is_that_of_float64() -> None:
    f, data, noise = unit(16, 32), unit(16, 32, seed=1), unit(16, 256, 32, seed=2)
    exact = nce_of(f, data, noise, 0.07, 3e4, 1000)
    single = nce_of(f.float(), data.float(), noise.float(), 0.07, 3e4, 1000)
    assert float(single) == pytest.approx(float(exact), rel=1e-5)


def test_nce_stays_finite_where_the_exponential_would_overflow() -> None:
    f = torch.tensor([[1.0, 0.0]], requires_grad=True)
    noise = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    loss = nce_of(f, f.detach(), noise, 0.005, 1.0, 10)  # exp(1/T) is 7e86
    loss.backward()
    assert math.isfinite(loss.item()) and f.grad is not None and bool(f.grad.isfinite().all())


def test_nce_gradients_pass_gradcheck() -> None:
    inputs = [x.requires_grad_() for x in (unit(3, 4), unit(3, 4, seed=1), unit(3, 2, 4, seed=2))]
    assert torch.autograd.gradcheck(lambda a, b, c: nce_of(a, b, c, 0.5, 20.0, 9), inputs)


def test_nce_takes_z_as_a_constant() -> None:
    log_z = torch.tensor(3.0, requires_grad=True)
    s = torch.zeros(2, requires_grad=True)
    nce(s, torch.zeros(2, 4), temperature=0.1, log_z=log_z, images=9).backward()
    assert log_z.grad is None and s.grad is not None


@pytest.mark.parametrize("samples", [1, 64, 4096])
def test_nce_of_a_model_that_says_one_in_n_is_its_chance_loss(samples: int) -> None:
    n = 1000  # similarities 0 and Z = n make every P one in n, and h = 1 / (1 + m)
    zeros = torch.zeros(2, dtype=torch.float64), torch.zeros(2, samples, dtype=torch.float64)
    log_z = torch.tensor(math.log(n), dtype=torch.float64)
    loss = nce(*zeros, temperature=0.07, log_z=log_z, images=n)
    h = 1 / (1 + samples)
    assert float(loss) == pytest.approx(-math.log(h) - samples * math.log(1 - h), rel=1e-9)
    assert nce_chance(samples) == pytest.approx(float(loss), rel=1e-9)


def test_nce_is_lowest_where_p_is_the_true_posterior() -> None:
    """NCE with samples of the noise and of the data recovers ln P, so its minimum is there."""
    n, m = 4, 2000
    truth = torch.tensor([0.55, 0.25, 0.15, 0.05], dtype=torch.float64)
    s = truth.log().requires_grad_()  # T = 1 and Z = 1: P is exp(s)
    # Expected loss: the positive is image j with probability truth_j, noise is uniform.
    loss = log_z = torch.zeros((), dtype=torch.float64)
    for j in range(n):
        noise = s.repeat(m // n)[None]
        one = nce(s[j : j + 1], noise, temperature=1.0, log_z=log_z, images=n)
        loss = loss + truth[j] * one
    torch.testing.assert_close(
        torch.autograd.grad(loss, s)[0], torch.zeros(n, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_z_is_n_times_the_mean_exponential() -> None:
    negative = similarities(unit(5, 8), unit(5, 8), unit(5, 7, 8, seed=3))[1]
    # Wu et al. 2018, Eq. 8, for each query, then the mean of the queries' estimates.
    per_query = [30 / 7 * sum(math.exp(float(s) / 0.07) for s in row) for row in negative]
    got = float(log_z_estimate(negative, temperature=0.07, images=30).exp())
    assert got == pytest.approx(sum(per_query) / 5, rel=1e-10)


def test_z_over_every_row_once_is_exact() -> None:
    bank, f = unit(20, 8), unit(1, 8, seed=1)
    exact = sum(math.exp(float(row @ f[0]) / 0.1) for row in bank)  # Eq. 4
    got = float(log_z_estimate(f @ bank.t(), temperature=0.1, images=20).exp())
    assert got == pytest.approx(exact, rel=1e-10)


def test_z_of_random_unit_vectors_is_near_its_expectation() -> None:
    # E exp(s/T) of a random direction in C dimensions is about exp(1 / (2 C T^2)) for large C.
    c, t, n = 512, 0.2, 10_000
    negative = unit(64, c) @ unit(512, c, seed=1).t()
    got = float(log_z_estimate(negative, temperature=t, images=n).exp())
    assert got == pytest.approx(n * math.exp(1 / (2 * c * t * t)), rel=0.01)


def test_proximal_is_the_mean_squared_distance_and_two_minus_two_cosines() -> None:
    f, before = unit(5, 4), unit(5, 4, seed=1)
    expected = sum(float(((a - b) ** 2).sum()) for a, b in zip(f, before, strict=True)) / 5
    cosines = (f * before).sum(dim=1)
    got = proximal(f.requires_grad_(), before)
    assert got.item() == pytest.approx(expected, rel=1e-12)
    assert got.item() == pytest.approx(float((2 - 2 * cosines).mean()), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(got, f)[0], 2 * (f.detach() - before) / 5)
