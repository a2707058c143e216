"""One process or several: start them, know one's rank, gather what they found."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from moco_det.foundation.errors import InputError
from moco_det.foundation.launching import check_gpus, torchrun_group, torchrun_process


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(value: Any) -> list[Any]:
    """Everybody's value, by rank, in every process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of a tensor over the processes."""
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return values


def parallel(model: nn.Module, device: str) -> nn.Module:
    """The model whose gradients are the means over the processes; itself where it is alone.

    Every parameter that is trained must take part in every step.
    """
    if world_size() == 1:
        return model
    return nn.parallel.DistributedDataParallel(
        model,
        device_ids=[torch.cuda.current_device()] if device == "cuda" else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )


def share_buffers(model: nn.Module) -> None:
    """Give every process the first one's buffers: the BN statistics that a checkpoint holds."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def launch(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    *,
    processes: int,
    machines: int,
    machine_rank: int,
    url: str,
    device: str,
) -> None:
    """Run ``function(*arguments)`` in ``processes`` processes on each of ``machines`` machines.

    NCCL on GPUs, gloo on CPUs. Under torchrun the processes exist already and are joined.
    """
    started = torchrun_process()
    if started is not None:
        with torchrun_group(started, device):
            function(*arguments)
        return
    total = processes * machines
    if device == "cuda":
        check_gpus(processes)
    if total == 1:
        function(*arguments)
        return
    start = machine_rank * processes
    work = (function, arguments, start, total, url, device)
    try:
        mp.spawn(_process, args=work, nprocs=processes)
    except mp.ProcessRaisedException as error:
        line = next((x for x in reversed(str(error).splitlines()) if "InputError: " in x), None)
        if line is None:
            raise
        raise InputError(line.split("InputError: ", 1)[1]) from None


def _process(
    local_rank: int,
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    start: int,
    total: int,
    url: str,
    device: str,
) -> None:
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // total))
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=url, rank=start + local_rank, world_size=total)
    try:
        function(*arguments)
    finally:
        dist.destroy_process_group()
