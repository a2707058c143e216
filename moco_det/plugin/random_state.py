"""The generators that detectron2 draws from: torch's, numpy's and Python's own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """The state of this process's generators on the CPU, in values that a checkpoint holds."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "numpy": (name, np.asarray(keys).tolist(), *rest),
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go back to a `random_state`."""
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])


@contextmanager
def untouched() -> Iterator[None]:
    """What the block draws leaves the generators as they were."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Generators of this seed within the block, and as they were after it."""
    with untouched():
        torch.default_generator.manual_seed(seed)  # and not those of GPUs
        np.random.seed(seed)
        random.seed(seed)
        yield
