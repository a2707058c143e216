from __future__ import annotations

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.dictionaries import Queue


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


@pytest.mark.parametrize(("dim", "size"), [(0, 4), (4, 0)])
def test_queue_refuses_an_empty_shape(dim: int, size: int) -> None:
    with pytest.raises(ValueError, match="dim >= 1"):
        Queue(dim, size)
