"""BN statistics that several processes estimated apart, made one: for precise BN on both engines.

fvcore's estimator (Wu & Johnson 2021, section 3) leaves every rank with statistics of its own
batches, and only the first rank's are saved: what is scored would not be what was trained.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn


def average_over_processes(layers: Iterable[nn.Module]) -> None:
    """Mean and variance of the union of the processes' batches, each process counting alike.

    With one process nothing is done. Every process must come here with as many layers.
    """
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if processes == 1:
        return
    for layer in layers:
        mean, variance = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
        moments = torch.stack([mean, variance + mean**2])
        dist.all_reduce(moments)
        moments /= processes
        mean.copy_(moments[0])
        variance.copy_(moments[1] - moments[0] ** 2)
