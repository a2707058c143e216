"""What a process asks of the others; every call also works without a process group.

Rank r of W holds rows [r*n, (r+1)*n) of a global batch of N = W*n rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moco_det.foundation import stopping
from moco_det.foundation.errors import InputError

T = TypeVar("T")


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


def gather_objects(value: Any) -> list[Any]:
    """Every process's value, by rank; it is pickled on the way."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def parallel(model: nn.Module) -> nn.Module:
    """The model whose gradients are the means over the processes; itself where it is alone.

    Every parameter that is trained must take part in every step. Running statistics stay each
    process's own.
    """
    if world_size() == 1:
        return model
    return nn.parallel.DistributedDataParallel(
        model, broadcast_buffers=False, gradient_as_bucket_view=True
    )


def share_buffers(model: nn.Module) -> None:
    """Give every process the first one's buffers: the BN statistics that a checkpoint holds."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def on_main(make: Callable[[], Any]) -> Any:
    """What ``make`` gives on the main process, on every process; its InputError on all, too."""
    made = None
    if is_main():
        try:
            made = make()
        except InputError as error:
            made = error
    made = from_main(made)
    if isinstance(made, InputError):
        raise made
    return made


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


def largest(tensor: Tensor) -> Tensor:
    """The largest of the processes' values, element by element, a new tensor."""
    found = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return found


class Agreement:
    """Whether any process of the run was asked to stop; all hear it after the same step.

    On GPUs the answer is that of the call before: none waits for the step that is running.
    """

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self._before: tuple[Tensor, torch.cuda.Event] | None = None

    def asked(self) -> int:
        """The signal, 0 for none. Every process calls this after every step."""
        if world_size() == 1:
            return stopping.asked()
        now = largest(torch.full((), stopping.asked(), device=self.device))
        if self.device.type != "cuda":
            return int(now)
        answer = 0
        if self._before is not None:
            copied, event = self._before
            event.synchronize()
            answer = int(copied)
        copied = torch.empty((), dtype=now.dtype, pin_memory=True).copy_(now, non_blocking=True)
        self._before = copied, torch.cuda.current_stream(self.device).record_event()
        return answer

    def until_asked(self, items: Iterable[T]) -> Iterator[T]:
        """The items, of which every process takes as many; `Stopped` on all after a signal."""
        for item in items:
            if number := self.asked():
                raise stopping.Stopped(number)
            yield item


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
