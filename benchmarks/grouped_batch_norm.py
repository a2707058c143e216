"""Batch norm in groups beside batch norm in one: an encoder's forward and backward.

    python benchmarks/grouped_batch_norm.py [--arch resnet18] [--size 32] [--batch 128] [--groups 4]

All spellings take turns in one process; a ratio is taken within a round. On a CPU the seconds are
those that the processor spent, and there is no kernel for groups.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from unittest import mock

import torch
from rows import add_rows_option, write_row
from torch import Tensor, nn

from moco_det.foundation.precision import pick_device
from moco_det_tools.entry import run
from pretrain.encoders import ARCHITECTURES, HAS_TRITON, Encoder, SplitBatchNorm2d

SPELLINGS: dict[str, Callable[[SplitBatchNorm2d, Tensor], Tensor]] = {
    "one group": nn.BatchNorm2d.forward,
    "a call per group": SplitBatchNorm2d.call_per_group,
    "grouped kernel": SplitBatchNorm2d.grouped_kernel,
}


def work_of(
    forward: Callable[[SplitBatchNorm2d, Tensor], Tensor],
    encoder: Encoder,
    images: Tensor,
    *,
    bfloat16: bool,
    captured: bool,
) -> Callable[[], None]:
    """A forward and backward pass with one spelling, replayed from a CUDA graph if captured."""

    def work() -> None:
        with mock.patch.object(SplitBatchNorm2d, "forward", forward):
            encoder.zero_grad(set_to_none=True)
            encoder(images, bfloat16=bfloat16).sum().backward()

    if not captured:
        return work
    for _ in range(3):
        work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def seconds(work: Callable[[], None], steps: int, device: torch.device) -> float:
    """Of one call, the mean over some."""
    cuda = device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    if cuda:
        torch.cuda.synchronize()
    start = clock()
    for _ in range(steps):
        work()
    if cuda:
        torch.cuda.synchronize()
    return (clock() - start) / steps


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure in turn, print a line per peer of the last spelling."""
    p = argparse.ArgumentParser(description="Batch norm in groups: spellings in turn.")
    p.add_argument("--arch", default="resnet18", choices=sorted(ARCHITECTURES))
    p.add_argument("--size", type=int, default=32)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--groups", type=int, default=4)
    p.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    p.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    p.add_argument("--graph", action="store_true", help="replay CUDA graphs: no launches")
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--steps", type=int, default=1, help="of each spelling in a round")
    add_rows_option(p)
    args = p.parse_args(argv)
    device = pick_device(args.device)
    encoder = Encoder(args.arch, head="fc", dim=128, bn_splits=args.groups).to(device).train()
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(args.batch, 3, args.size, args.size, device=device)
    images = images.to(memory_format=torch.channels_last)
    captured = args.graph and device.type == "cuda"
    bfloat16 = args.precision == "bfloat16"
    *peers, ours = SPELLINGS if HAS_TRITON and device.type == "cuda" else list(SPELLINGS)[:-1]
    works = {
        name: work_of(SPELLINGS[name], encoder, images, bfloat16=bfloat16, captured=captured)
        for name in (*peers, ours)
    }
    rounds = [
        {name: seconds(work, args.steps, device) for name, work in works.items()}
        for _ in range(args.rounds + 1)
    ]
    # the first round warms up
    times = {name: [1e3 * one[name] for one in rounds[1:]] for name in works}
    for peer in peers:
        write_row(
            args.rows,
            what=f"batch norm, {args.groups} groups",
            case=", ".join(
                [f"{args.arch} {args.size} px, batch {args.batch}", args.precision]
                + ["graph"] * captured
            ),
            peer=peer,
            ours=ours,
            unit="ms",
            there=times[peer],
            here=times[ours],
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
