"""The methods with a memory bank: the MoCo paper's, and instance discrimination's three losses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.build import build_method
from pretrain.config import load_config
from pretrain.encoders import ARCHITECTURES, Encoder
from pretrain.methods.bank import Bank, BankArgs
from pretrain.methods.base import Batch, Method, MethodOutput
from pretrain.methods.inst_disc import (
    InstDiscArgs,
    InstDiscNCE,
    InstDiscParametric,
    InstDiscSoftmax,
)
from pretrain.methods.memory_bank import MemoryBank, MemoryBankArgs
from tests.pretrain.small_trunk import SmallTrunk

IMAGES = 20
INDICES = torch.tensor([3, 17, 0, 9, 12, 5])


@pytest.fixture(autouse=True)
def small_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "resnet18", SmallTrunk)


def parts(*, momentum: float = 0.5) -> tuple[Encoder, Bank]:
    torch.manual_seed(0)
    return Encoder("resnet18", head="fc", dim=8), Bank(IMAGES, 8, BankArgs(MOMENTUM=momentum))


def memory_bank(*, negatives: int = 12, shared: bool = True) -> MemoryBank:
    args = MemoryBankArgs(K=negatives, T=0.2, SHARED_NEGATIVES=shared)
    return MemoryBank(*parts(), args).train()


def nce(**keys: float) -> InstDiscNCE:
    return InstDiscNCE(*parts(), InstDiscArgs(**{"K": 7, "T": 0.2, **keys})).train()


def batch(seed: int = 1) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    return Batch((torch.randn(6, 3, 32, 32, generator=rng),), INDICES)


def features_of(method: Method, data: Batch) -> Tensor:
    return F.normalize(method.encoder(data.views[0]), dim=1)


def step(method: Method, data: Batch) -> MethodOutput:
    out = method(data, method.prepare(data))
    out.loss.backward()
    method.after_step(data.indices, out.features)
    return out


# The memory bank of the MoCo paper


@pytest.mark.parametrize("shared", [True, False])
def test_memory_bank_is_info_nce_over_the_drawn_rows_that_are_not_the_querys_own(
    shared: bool,
) -> None:
    method, data = memory_bank(shared=shared), batch()
    keys = method.prepare(data)
    out = method(data, keys)
    q, rows = features_of(method, data), method.bank.rows
    expected, dropped = 0.0, 0
    for i, own in enumerate(INDICES.tolist()):
        drawn = [j for j in keys[i].tolist() if j != own]
        dropped += 12 - len(drawn)
        weights = [math.exp(float(q[i].detach() @ rows[j]) / 0.2) for j in [own, *drawn]]
        expected -= math.log(weights[0] / sum(weights)) / 6
    assert dropped > 0  # else nothing was excluded
    assert out.loss.item() == pytest.approx(expected, rel=1e-5)
    assert method.dictionary_size == 12
    assert method.chance_loss == pytest.approx(math.log(13))


def test_a_draw_of_nothing_but_the_own_image_costs_nothing() -> None:
    method, data = memory_bank(shared=False), batch()
    out = method(data, INDICES[:, None].expand(6, 12))
    assert out.loss.item() == 0.0
    assert float(out.metrics["negative_similarity"]) == 0.0
    assert float(out.metrics["accuracy"]) == 100.0


def test_a_draw_is_shared_or_each_querys_own_and_uniform() -> None:
    shared = memory_bank(negatives=1000).prepare(batch())
    assert shared.shape == (6, 1000) and all(torch.equal(row, shared[0]) for row in shared)
    own = memory_bank(negatives=1000, shared=False).prepare(batch())
    assert own.shape == (6, 1000) and not torch.equal(own[0], own[1])
    for drawn, count in ((shared[0], 1000), (own, 6000)):
        hits = torch.bincount(drawn.flatten(), minlength=IMAGES)
        # 20 equal classes: each within 5 standard deviations
        spread = math.sqrt(count * 0.05 * 0.95)
        assert len(hits) == IMAGES
        assert float((hits - count * 0.05).abs().max()) < 5 * spread


def test_rows_are_written_after_the_step_and_are_not_trained() -> None:
    method, data = memory_bank(), batch()
    before = method.bank.rows.clone()
    out = method(data, method.prepare(data))
    out.loss.backward()
    assert torch.equal(method.bank.rows, before)  # the loss saw the rows of earlier steps
    assert not method.bank.rows.requires_grad
    method.after_step(data.indices, out.features)
    expected = F.normalize(0.5 * before[INDICES] + 0.5 * out.features, dim=1)
    torch.testing.assert_close(method.bank.rows[INDICES], expected)
    others = [i for i in range(IMAGES) if i not in INDICES.tolist()]
    assert torch.equal(method.bank.rows[others], before[others])
    assert method.gauges() == {"bank_fill": pytest.approx(6 / 20)}


def test_notes_and_warnings_of_a_memory_bank() -> None:
    notes = "\n".join(memory_bank().notes())
    for words in ("20 rows of 8 in float32", "not needed", "12 rows per step, one draw for all"):
        assert words in notes
    assert memory_bank(negatives=12).warnings(batch=6, images=IMAGES) == []
    assert "MEMORY_BANK.K 20" in memory_bank(negatives=20).warnings(batch=6, images=IMAGES)[0]


# Noise-contrastive estimation


@pytest.mark.parametrize("shared", [False, True])
def test_nce_is_the_papers_objective_over_the_drawn_rows(shared: bool) -> None:
    """Wu et al. 2018, Eq. 10 in float64, a term at a time, with lambda 3 and a given Z."""
    method = nce(Z=300.0, PROXIMAL=3.0, SHARED_NEGATIVES=shared)
    data = batch()
    keys = method.prepare(data)
    out = method(data, keys)
    f, bank = features_of(method, data).detach().double(), method.bank.rows.double()
    m, uniform, total = 7, 1 / IMAGES, 0.0

    def h(v: Tensor, feature: Tensor) -> float:
        p = math.exp(float(v @ feature) / 0.2) / 300.0
        return p / (p + m * uniform)

    for i, own in enumerate(INDICES.tolist()):
        total -= math.log(h(bank[own], f[i]))
        total += 3.0 * float(((f[i] - bank[own]) ** 2).sum())
        total -= sum(math.log(1 - h(bank[j], f[i])) for j in keys[i].tolist())
    assert out.loss.item() == pytest.approx(total / 6, rel=1e-5)


def test_noise_may_hit_the_own_image_as_the_uniform_distribution_says() -> None:
    keys = nce(K=500).prepare(batch())
    assert all(INDICES[i] in keys[i] for i in range(6))


def test_z_is_estimated_on_the_first_batch_and_stays() -> None:
    method, data = nce(), batch()
    assert "Z estimated on the first batch, constant" in "\n".join(method.notes())
    statistics = method.encoder.trunk.bn1.running_mean.clone()
    keys = method.prepare(data)
    assert torch.equal(method.encoder.trunk.bn1.running_mean, statistics)
    q = features_of(method, data).detach()
    exponentials = [
        math.exp(float(q[i] @ method.bank.rows[j]) / 0.2)
        for i in range(6)
        for j in keys[i].tolist()
    ]
    z = IMAGES * sum(exponentials) / len(exponentials)  # Eq. 8
    assert method.gauges()["z"] == pytest.approx(z, rel=1e-5)
    step(method, data)
    step(method, batch(seed=2))
    assert method.gauges()["z"] == pytest.approx(z, rel=1e-5)
    assert f"Z {z:.4g}"[:5] in "\n".join(method.notes())


def test_a_resumed_run_keeps_its_z() -> None:
    method = nce()
    step(method, batch())
    other = nce()
    other.load_state_dict(method.state_dict())
    other.prepare(batch(seed=5))
    assert torch.equal(other.log_z, method.log_z)


@pytest.mark.parametrize("z_momentum", [0.0, 0.9])
def test_z_moves_by_its_momentum_after_the_step(z_momentum: float) -> None:
    method, data = nce(Z=50.0, Z_MOMENTUM=z_momentum), batch()
    keys = method.prepare(data)
    similarity = method.similarity(features_of(method, data).detach(), keys)
    estimate = IMAGES * float((similarity.double() / 0.2).exp().mean())
    out = method(data, keys)
    out.loss.backward()
    assert method.gauges()["z"] == pytest.approx(50.0, rel=1e-5)
    method.after_step(data.indices, out.features)
    expected = z_momentum * 50.0 + (1 - z_momentum) * estimate
    assert method.gauges()["z"] == pytest.approx(expected, rel=1e-5)


def test_the_chance_loss_of_nce_has_its_closed_form() -> None:
    # h = 1/(1+m) for data and noise; unrelated unit vectors are sqrt(2) apart
    expected = math.log(8) + 7 * math.log(8 / 7)
    assert nce().chance_loss == pytest.approx(expected)
    assert nce(PROXIMAL=3.0).chance_loss == pytest.approx(expected + 6.0)
    assert nce().dictionary_size == 7


def test_the_proximal_term_is_lambda_times_the_squared_distance_to_the_own_row() -> None:
    losses, distance = [], torch.zeros(())
    for weight in (0.0, 3.0):
        method = nce(Z=300.0, PROXIMAL=weight)
        torch.manual_seed(1)
        out = method(batch(), method.prepare(batch()))
        losses.append(out.loss.item())
        distance = out.metrics.get("proximal", distance)
    assert losses[1] - losses[0] == pytest.approx(3.0 * float(distance), rel=1e-4)
    q = features_of(method, batch()).detach()
    expected = (q - method.bank.rows[INDICES]).square().sum(dim=1).mean()
    assert float(distance) == pytest.approx(float(expected), rel=1e-5)


def test_paper_and_released_code_differ_by_keys() -> None:
    def made(*pairs: str) -> InstDiscNCE:
        torch.manual_seed(0)
        always = ["METHOD", "inst_disc", "ENCODER.ARCH", "resnet18", "SOLVER.MAX_ITER", "1"]
        cfg = load_config(None, [*always, "ENCODER.DIM", "8", "INST_DISC.K", "7", *pairs])
        method = build_method(cfg, images=IMAGES, classes=None, bfloat16=False)
        assert isinstance(method, InstDiscNCE)
        return method.train()

    paper = made("BANK.MOMENTUM", "0", "INST_DISC.PROXIMAL", "30")
    out = step(paper, batch())
    torch.testing.assert_close(paper.bank.rows[INDICES], out.features)  # replaced, Section 3.1
    assert "proximal" in out.metrics
    assert "proximal term: lambda 30" in paper.notes()

    released = made()
    before = released.bank.rows[INDICES].clone()
    out = step(released, batch())
    torch.testing.assert_close(
        released.bank.rows[INDICES], F.normalize(0.5 * before + 0.5 * out.features, dim=1)
    )
    assert "proximal" not in out.metrics


# The two softmaxes


def test_the_full_softmax_is_over_every_row() -> None:
    method = InstDiscSoftmax(*parts(), InstDiscArgs(T=0.2)).train()
    data = batch()
    out = method(data, method.prepare(data))
    q, expected = features_of(method, data).detach(), 0.0
    for i, own in enumerate(INDICES.tolist()):
        weights = [math.exp(float(row @ q[i]) / 0.2) for row in method.bank.rows]
        expected -= math.log(weights[own] / sum(weights)) / 6
    assert out.loss.item() == pytest.approx(expected, rel=1e-5)
    assert method.dictionary_size == 19  # Table 1: 49,999 of CIFAR's 50,000 images
    assert method.chance_loss == pytest.approx(math.log(20))


def test_the_parametric_softmax_is_a_linear_classifier_of_images_without_bias() -> None:
    torch.manual_seed(0)
    encoder = Encoder("resnet18", head="fc", dim=8)
    method = InstDiscParametric(encoder, images=IMAGES).train()
    data = batch()
    out = method(data, None)
    v = method.encoder(data.views[0])
    scores = torch.stack([torch.stack([w @ x for w in method.classifier.weight]) for x in v])
    expected = -scores.log_softmax(dim=1)[torch.arange(6), INDICES].mean()  # Eq. 1
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    assert method.classifier.weight.grad is not None and method.classifier.bias is None
    assert set(out.metrics) == {"accuracy", "feature_std"}
    assert method.dictionary_size is None
    assert method.chance_loss == pytest.approx(math.log(IMAGES))


def test_instance_discrimination_learns_to_tell_a_few_images_apart() -> None:
    method = InstDiscSoftmax(*parts(momentum=0.0), InstDiscArgs(T=0.2)).train()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(step(method, batch()).loss.item())
        optimizer.step()
    assert losses[-1] < losses[1] - 0.3
