"""What pre-training asks of the other processes; every call also works without a process group.

Rank r of W holds rows [r*n, (r+1)*n) of a global batch of N = W*n rows.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moco_det.foundation.errors import InputError

# One process measures neighbours or writes a checkpoint while the others wait for the next step.
TIMEOUT = datetime.timedelta(hours=2)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """The process group of torchrun, where that started this process; nothing otherwise.

    NCCL on GPUs, of which each process takes the one of its LOCAL_RANK; gloo on CPUs.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    given = {name: os.environ.get(name, "") for name in names}
    try:
        local = int(given["LOCAL_RANK"] or "0")
        sound = 0 <= int(given["RANK"]) < int(given["WORLD_SIZE"]) and local >= 0
        sound = sound and bool(given["MASTER_ADDR"]) and 0 < int(given["MASTER_PORT"]) < 2**16
    except ValueError:
        sound = False
    if not sound:
        said = " ".join(f"{name}={value}" for name, value in given.items())
        raise InputError(
            f"torchrun starts no process with {said}: start several processes by torchrun, or "
            "unset WORLD_SIZE"
        )
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise InputError(
                f"process {local} of this machine has no GPU: it has {torch.cuda.device_count()}; "
                "start as many processes by torchrun --nproc-per-node"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that logs and writes."""
    return rank() == 0


@torch.no_grad()
def gather(tensor: Tensor) -> Tensor:
    """The tensors [n, ...] of all processes as one [W*n, ...] in rank order, without a gradient.

    All processes must give the same shape. A channels-last batch of images stays channels-last.
    """
    tensor = tensor.detach()
    processes = world_size()
    if processes == 1:
        return tensor
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        # Sent in the order it lies in memory, so nothing is copied to be sent.
        return _all_gather(tensor.permute(0, 2, 3, 1), processes).permute(0, 3, 1, 2)
    return _all_gather(tensor, processes)


def gather_with_grad(tensor: Tensor) -> Tensor:
    """As `gather`, and the gradient flows back to each row's owner, summed over the processes.

    With every process's loss a mean over its own rows, the mean over processes that
    DistributedDataParallel takes is then the gradient of the mean over the global batch.
    """
    return tensor if world_size() == 1 else _GatherWithGrad.apply(tensor)


def own_share(tensor: Tensor) -> Tensor:
    """This process's rows [n, ...] of a tensor [W*n, ...] that all processes hold."""
    share = len(tensor) // world_size()
    return tensor[rank() * share : (rank() + 1) * share]


@torch.no_grad()
def broadcast(tensor: Tensor, src: int = 0) -> Tensor:
    """Overwrite `tensor` by that of process `src`, and return it."""
    if world_size() > 1:
        dist.broadcast(tensor, src)
    return tensor


def from_main(thing: Any) -> Any:
    """What the main process gave, on every process; it is pickled on the way."""
    if world_size() == 1:
        return thing
    box = [thing]
    dist.broadcast_object_list(box, src=0)
    return box[0]


@torch.no_grad()
def mean(tensor: Tensor) -> Tensor:
    """The mean over the processes, a new tensor without a gradient."""
    total = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
        total /= world_size()
    return total


def _all_gather(tensor: Tensor, processes: int) -> Tensor:
    whole = tensor.new_empty(processes * len(tensor), *tensor.shape[1:])
    dist.all_gather_into_tensor(whole, tensor.contiguous())
    return whole


class _GatherWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _all_gather(tensor, world_size())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous()
        dist.all_reduce(whole)
        return own_share(whole)
