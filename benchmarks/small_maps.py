"""Convolutions on maps of at most 2x2 cells as matrix products against torch's, in an encoder.

    python benchmarks/small_maps.py [--arch resnet18] [--size 32] [--precision bfloat16]

Forward and backward by each spelling in turn in one process; a ratio is taken within a round.
Seconds are those that the processor spent, on one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from grouped_batch_norm import seconds
from rows import add_rows_option, write_row
from torch import nn

from moco_det_tools.entry import run
from pretrain.encoders import ARCHITECTURES, Encoder
from pretrain.small_maps import SmallMapConv2d


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print one row."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--arch", default="resnet18", choices=sorted(ARCHITECTURES))
    p.add_argument("--size", type=int, default=32)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float32"))
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--steps", type=int, default=5, help="of one spelling in one round")
    add_rows_option(p)
    args = p.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = Encoder(args.arch, head="mlp", dim=64)
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layers = [m for m in encoder.modules() if type(m) is SmallMapConv2d]
    images = torch.randn(args.batch, 3, args.size, args.size)
    images = images.to(memory_format=torch.channels_last)

    def work() -> None:
        encoder.zero_grad(set_to_none=True)
        encoder(images, bfloat16=args.precision == "bfloat16").sum().backward()

    found: dict[type[nn.Conv2d], list[float]] = {nn.Conv2d: [], SmallMapConv2d: []}
    for number in range(args.rounds + 1):
        for kind, taken in found.items():
            for layer in layers:
                layer.__class__ = kind
            spent = seconds(work, args.steps, torch.device("cpu"))
            if number:  # the first round warms up
                taken.append(1000 * spent)
    write_row(
        args.rows,
        what="small maps",
        case=f"{args.arch} {args.size} px, batch {args.batch}, {args.precision}",
        peer="torch's convolutions",
        ours="matrix products",
        unit="ms",
        there=found[nn.Conv2d],
        here=found[SmallMapConv2d],
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
