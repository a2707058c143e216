"""A step of training as one CUDA graph: one launch instead of a thousand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moco_det.foundation.errors import InputError
from pretrain.methods.base import Batch

# Steps before the capture: what they allocate and choose once (momentum buffers, workspaces,
# convolution algorithms) must not happen inside it.
FIRST = 3

Compute = Callable[[Batch], dict[str, Tensor]]


class CapturedStep:
    """`compute`, captured after its first steps and replayed from then on.

    The graph reads its batch from tensors of its own, so batches must have one shape, and leaves
    its results in the same tensors each time: read them before the next step. Whatever `compute`
    changes lies in tensors, which a checkpoint holds whether they were written by a replay or
    not. `settled` says when nothing that Python decides will change any more.
    """

    def __init__(self, compute: Compute, *, settled: Callable[[], bool]) -> None:
        self.compute = compute
        self.settled = settled
        self.to_come = FIRST
        self.batch: Batch | None = None
        self.results: dict[str, Tensor] = {}
        self.replay: Callable[[], None] | None = None

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        if self.to_come > 0 or not self.settled():
            self.to_come -= 1
            return self.compute(batch)
        if self.batch is None or self.replay is None:
            own = self.batch = batch.each(torch.clone)
            self.replay, self.results = record(lambda: self.compute(own))
        torch._foreach_copy_(self.batch.tensors(), batch.tensors())
        self.replay()
        return self.results


def record(
    function: Callable[[], dict[str, Tensor]],
) -> tuple[Callable[[], None], dict[str, Tensor]]:
    """Capture a function without running it: what runs it, and the tensors it will fill."""
    graph = torch.cuda.CUDAGraph()
    try:
        # The loader's thread pins memory meanwhile, which only another thread may do.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = function()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        first = str(error).strip().partition("\n")[0]
        raise InputError(
            f"COMPILE is True and the step cannot be captured ({first}): set COMPILE False"
        ) from error
    return graph.replay, results
