"""BN statistics over many batches with the weights standing still: precise BN on both engines.

fvcore's estimator (Wu & Johnson 2021, section 3) leaves every process with statistics of its own
batches, and only the first one's are saved: what is scored would not be what was trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn
from tqdm import tqdm

from moco_det.foundation import collectives


def precise_statistics(model: nn.Module, batches: Iterable[Any], iterations: int) -> None:
    """Replace the running statistics of every trained BN layer by those of ``model(batch)``.

    With several processes those of all their batches; each must come here with as many layers.
    """
    layers = get_bn_modules(model)
    if not layers:
        return
    with tqdm(
        total=iterations,
        desc="precise BN",
        unit="batch",
        mininterval=1,
        disable=not collectives.is_main(),
    ) as bar:

        def counted() -> Iterator[Any]:
            for batch in batches:
                bar.update()
                yield batch

        update_bn_stats(model, counted(), iterations)
    average_over_processes(layers)


def average_over_processes(layers: Iterable[nn.Module]) -> None:
    """Mean and variance of the union of the processes' batches, each process counting alike."""
    if collectives.world_size() == 1:
        return
    for layer in layers:
        mean, variance = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
        average = collectives.mean(torch.stack([mean, variance + mean**2]))
        mean.copy_(average[0])
        variance.copy_(average[1] - average[0] ** 2)
