"""BANK.SKIP_UNSEEN: rows that hold the random start stay out of the loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.encoders import ARCHITECTURES, Encoder
from pretrain.methods.bank import Bank, BankArgs
from pretrain.methods.base import Batch, Method, MethodOutput
from pretrain.methods.inst_disc import InstDiscArgs, InstDiscNCE, InstDiscSoftmax
from pretrain.methods.memory_bank import MemoryBank, MemoryBankArgs
from tests.pretrain.small_trunk import SmallTrunk

IMAGES = 12
HALF = torch.arange(6)


@pytest.fixture(autouse=True)
def small_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "resnet18", SmallTrunk)


def parts(*, skip: bool = True) -> tuple[Encoder, Bank]:
    torch.manual_seed(0)
    encoder = Encoder("resnet18", head="fc", dim=8)
    return encoder, Bank(IMAGES, 8, BankArgs(SKIP_UNSEEN=skip))


def batch(indices: Tensor, seed: int = 1) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    return Batch((torch.randn(len(indices), 3, 32, 32, generator=rng),), indices)


def features_of(method: Method, data: Batch) -> Tensor:
    return F.normalize(method.encoder(data.views[0]), dim=1)


def step(method: Method, data: Batch) -> MethodOutput:
    out = method(data, method.prepare(data))
    out.loss.backward()
    method.after_step(data.indices, out.features)
    return out


def methods(*, skip: bool = True, proximal: float = 1.0) -> list[Method]:
    args = InstDiscArgs(K=9, T=0.2, PROXIMAL=proximal)
    made = [
        MemoryBank(*parts(skip=skip), MemoryBankArgs(K=9, T=0.2)),
        InstDiscNCE(*parts(skip=skip), args),
        InstDiscSoftmax(*parts(skip=skip), args),
    ]
    return [method.train() for method in made]


@pytest.mark.parametrize("which", range(3))
def test_the_first_epoch_only_fills_the_bank(which: int) -> None:
    method, other = methods()[which], methods(skip=False)[which]
    out = step(method, batch(HALF))
    assert out.loss.item() == 0.0
    assert all(not p.grad.any() for p in method.encoder.parameters() if p.grad is not None)
    assert method.bank.seen.tolist() == [True] * 6 + [False] * 6
    assert step(other, batch(HALF)).loss.item() > 0.1
    assert any(p.grad.any() for p in other.encoder.parameters())
    assert step(method, batch(HALF, seed=2)).loss.item() > 0.1


def test_unseen_rows_are_no_negatives_of_the_memory_bank_and_their_queries_count_nothing() -> None:
    method = methods()[0]
    step(method, batch(HALF))
    data = batch(torch.tensor([0, 3, 8, 11]), seed=2)
    keys = torch.tensor([[1, 3, 4, 7, 9]]).expand(4, 5)
    q, rows = features_of(method, data).detach(), method.bank.rows
    expected = 0.0
    for i, (own, others) in enumerate([(0, [1, 3, 4]), (3, [1, 4])]):
        weights = [math.exp(float(q[i] @ rows[j]) / 0.2) for j in [own, *others]]
        expected -= math.log(weights[0] / sum(weights)) / 4
    assert method(data, keys).loss.item() == pytest.approx(expected, rel=1e-5)


def test_unseen_rows_are_no_classes_of_the_softmax() -> None:
    method = methods(proximal=0.0)[2]
    step(method, batch(HALF))
    data = batch(torch.tensor([2, 9]), seed=2)
    q, rows = features_of(method, data).detach(), method.bank.rows
    weights = [math.exp(float(q[0] @ rows[j]) / 0.2) for j in range(6)]
    expected = -math.log(weights[2] / sum(weights)) / 2
    assert method(data, None).loss.item() == pytest.approx(expected, rel=1e-5)


def test_z_is_estimated_once_most_queries_have_a_feature_in_the_bank() -> None:
    method = methods()[1]
    step(method, batch(HALF))
    assert math.isnan(method.z)
    step(method, batch(torch.tensor([0, 7, 8, 9, 10, 11]), seed=2))
    assert math.isnan(method.z)
    data = batch(HALF, seed=3)
    keys = method.prepare(data)
    q = features_of(method, data).detach()
    similarity = (q[:, None] * method.bank.rows[keys]).sum(dim=2).double()
    assert method.z == pytest.approx(IMAGES * float((similarity / 0.2).exp().mean()), rel=1e-4)


def test_a_bank_says_that_its_first_epoch_only_fills_it() -> None:
    assert "only fills" in "\n".join(methods()[0].notes())
    assert "only fills" not in "\n".join(methods(skip=False)[0].notes())


def test_the_first_feature_of_an_image_replaces_the_random_start() -> None:
    _, bank = parts()
    first = F.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(3)), dim=1)
    bank.write(first, HALF)
    assert torch.allclose(bank.rows[HALF], first, atol=1e-6)
    bank.write(first.flip(1), HALF)
    moved = F.normalize((first + first.flip(1)) / 2, dim=1)
    assert torch.allclose(bank.rows[HALF], moved, atol=1e-6)
