from __future__ import annotations

from collections import deque

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.methods import bank as bank_module
from pretrain.methods.bank import DTYPES, Bank, BankArgs, last_of_each
from pretrain.methods.moco import Queue


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 9), batches=st.lists(st.integers(1, 25), min_size=1, max_size=6))
def test_queue_holds_the_last_keys_for_any_batch_and_any_size(
    size: int, batches: list[int]
) -> None:
    queue, expected, number = Queue(1, size), deque[float](maxlen=size), 0
    for batch in batches:
        keys = torch.arange(number, number + batch, dtype=torch.float32)[:, None]
        queue.write(keys)
        expected.extend(keys[:, 0].tolist())
        number += batch
    held = queue.read()[:, 0].tolist()
    # The oldest row is the one that the pointer will overwrite next.
    if number >= size:
        start = int(queue.pointer)
        assert held[start:] + held[:start] == list(expected)
    else:
        assert held[:number] == list(expected)
    assert queue.fill == min(1.0, number / size)


def test_queue_starts_with_unit_vectors() -> None:
    norms = Queue(16, 50).read().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(50))


def test_queue_state_survives_a_state_dict_round_trip() -> None:
    a, b = Queue(4, 6), Queue(4, 6)
    a.write(torch.randn(4, 4))
    b.load_state_dict(a.state_dict())
    more = torch.randn(5, 4)
    a.write(more)
    b.write(more)
    assert torch.equal(a.read(), b.read())
    assert int(a.pointer) == int(b.pointer) == 9 % 6


def test_queue_keys_carry_no_gradient() -> None:
    queue = Queue(4, 6)
    queue.write(torch.randn(3, 4, requires_grad=True))
    assert not queue.read().requires_grad


def test_queue_is_read_and_written_in_place() -> None:
    queue = Queue(4, 6)
    where = queue.read().data_ptr()
    queue.write(torch.randn(9, 4))
    assert queue.read().data_ptr() == where


def unit(n: int, c: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, c), dim=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bank_starts_with_unit_vectors_in_its_type_and_reads_float32(dtype: str) -> None:
    bank = Bank(40, 16, BankArgs(DTYPE=dtype))
    assert bank.rows.dtype == DTYPES[dtype]
    read = bank.read(torch.arange(40))
    assert read.dtype == torch.float32
    torch.testing.assert_close(read.norm(dim=1), torch.ones(40), atol=2e-3, rtol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bank_rows_move_by_momentum_and_are_normalised(momentum: float, dtype: str) -> None:
    torch.manual_seed(0)
    bank = Bank(12, 8, BankArgs(MOMENTUM=momentum, DTYPE=dtype))
    before, features, indices = bank.rows.float().clone(), unit(4, 8), torch.tensor([7, 0, 11, 3])
    bank.write(features, indices)
    after = bank.rows.float()
    loose = {"atol": 1e-3, "rtol": 0.0} if dtype == "float16" else {"atol": 1e-6, "rtol": 1e-6}
    for feature, i in zip(features, indices.tolist(), strict=True):
        moved = momentum * before[i] + (1 - momentum) * feature
        torch.testing.assert_close(after[i], moved / moved.norm(), **loose)
    untouched = [i for i in range(12) if i not in indices.tolist()]
    assert torch.equal(after[untouched], before[untouched])
    assert bank.fill == pytest.approx(4 / 12)


def test_of_an_image_that_is_there_twice_the_last_feature_counts() -> None:
    torch.manual_seed(0)
    bank = Bank(5, 4, BankArgs())
    before, features = bank.rows.clone(), unit(4, 4)
    bank.write(features, torch.tensor([2, 4, 2, 2]))
    torch.testing.assert_close(
        bank.rows[2], F.normalize(0.5 * before[2] + 0.5 * features[3], dim=0)
    )
    torch.testing.assert_close(
        bank.rows[4], F.normalize(0.5 * before[4] + 0.5 * features[1], dim=0)
    )


@settings(max_examples=30, deadline=None)
@given(numbers=st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_the_last_of_each_is_where_a_dict_would_have_it(numbers: list[int]) -> None:
    where = {number: position for position, number in enumerate(numbers)}
    expected = [where[number] for number in numbers]
    assert last_of_each(torch.tensor(numbers)).tolist() == expected


def test_bank_state_survives_a_state_dict_round_trip_and_has_no_gradient() -> None:
    a = Bank(6, 4, BankArgs(DTYPE="float16"))
    a.write(unit(2, 4).requires_grad_(), torch.tensor([1, 5]))
    b = Bank(6, 4, BankArgs(DTYPE="float16"))
    b.load_state_dict(a.state_dict())
    assert torch.equal(a.rows, b.rows) and b.fill == a.fill == pytest.approx(2 / 6)
    assert not a.rows.requires_grad


@pytest.mark.parametrize("dense", [0, 10**6])
def test_similarity_to_drawn_rows_is_the_same_both_ways(
    dense: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(bank_module, "DENSE", dense)
    bank, q = Bank(9, 4, BankArgs()), unit(3, 4).requires_grad_()
    drawn = torch.randint(9, (3, 20))  # with repeats
    got = bank.similarity(q, drawn)
    expected = torch.stack([torch.stack([q[i] @ bank.rows[j] for j in drawn[i]]) for i in range(3)])
    torch.testing.assert_close(got, expected)
    weights = torch.randn(3, 20)
    grads = [torch.autograd.grad((x * weights).sum(), q)[0] for x in (got, expected)]
    torch.testing.assert_close(grads[0], grads[1])
