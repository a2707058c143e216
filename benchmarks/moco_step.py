"""Images a second through a MoCo step: written as the original is, ours, and the networks alone.

    python benchmarks/moco_step.py [--arch resnet50] [--size 224] [--batch 32] [--device cpu]
    python benchmarks/moco_step.py --device cuda --compile --groups 8 --views

The reference is Algorithm 1 of the MoCo paper as its released code spells it out: float32,
channels first, a loop over parameters for the momentum update, a cloned queue. Ours is the step
of pretrain/loop.py in the precision named. "networks alone" are forward and backward of the query
encoder and forward of the key encoder in that same precision and layout, with nothing around
them: what a step cannot beat. All take turns in one process; a ratio is taken within a round.
On a CPU the seconds are those that the processor spent, so that other work counts little. With
`--compile` ours is measured once more as COMPILE has it: as a CUDA graph on a GPU, by torch.compile
elsewhere. The views lie on the device already, but for the last of ours with `--views`: there they
are made in each step as DATA.ON_DEVICE does it, drawn by worker processes from a made set of
images; "views alone" does that and nothing else, and on a CPU "views of whole batches" does it
without the parts of pretrain/device_views.py that stay in its cache.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rows import add_rows_option, write_row
from torch import Tensor, nn
from tqdm import tqdm

from moco_det.foundation.precision import pick_device
from moco_det_tools.entry import run
from pretrain import augment, data
from pretrain.build import build_method
from pretrain.capture import CapturedStep
from pretrain.config import load_config
from pretrain.data.resident import RowSet, Squares, ViewsOnDevice
from pretrain.encoders import ARCHITECTURES, Encoder
from pretrain.methods.base import Batch

Step = Callable[[], Tensor]
DIM, NEGATIVES, MOMENTUM, TEMPERATURE = 128, 65536, 0.999, 0.2
IMAGES, WORKERS = 4096, 4  # of the made set, and processes that draw its views


class PlainMoCo:
    """MoCo as one writes it down: no care for memory layout or the number of small operations."""

    def __init__(self, arch: str, device: torch.device) -> None:
        self.query = Encoder(arch, head="mlp", dim=DIM).to(device).train()
        self.key = copy.deepcopy(self.query)
        for parameter in self.key.parameters():
            parameter.requires_grad = False
        self.queue = F.normalize(torch.randn(DIM, NEGATIVES, device=device), dim=0)  # C x K
        self.pointer = 0
        self.optimizer = torch.optim.SGD(
            self.query.parameters(), 0.03, momentum=0.9, weight_decay=1e-4, foreach=False
        )

    def step(self, view_q: Tensor, view_k: Tensor) -> Tensor:
        """One step on normalised float32 views [N, 3, S, S]."""
        q = F.normalize(self.query(view_q), dim=1)
        with torch.no_grad():
            for pair in zip(self.query.parameters(), self.key.parameters(), strict=True):
                pair[1].data = pair[1].data * MOMENTUM + pair[0].data * (1.0 - MOMENTUM)
            order = torch.randperm(len(view_k), device=view_k.device)
            k = F.normalize(self.key(view_k[order]), dim=1)[torch.argsort(order)]
        positive = torch.einsum("nc,nc->n", [q, k]).unsqueeze(-1)
        negative = torch.einsum("nc,ck->nk", [q, self.queue.clone().detach()])
        logits = torch.cat([positive, negative], dim=1) / TEMPERATURE
        loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.queue[:, self.pointer : self.pointer + len(k)] = k.T
        self.pointer = (self.pointer + len(k)) % NEGATIVES
        return loss.detach()


def reference(pixels: Tensor, *, arch: str, device: torch.device) -> Step:
    """The plain step, on views that its loader has normalised already."""
    plain = PlainMoCo(arch, device)
    mean, std = (
        torch.tensor(values, device=device)[:, None, None]
        for values in (augment.IMAGE_MEAN, augment.IMAGE_STD)
    )
    views = [
        ((view.permute(0, 3, 1, 2).float() / 255 - mean) / std).contiguous()
        for view in pixels.unbind(dim=1)
    ]
    return lambda: plain.step(*views)


def made_views(
    *, batch: int, size: int, device: torch.device, whole: bool = False
) -> Iterator[data.RawBatch]:
    """Batches of two views, for ever, from a set that lies on the device; `whole`: in one part."""
    recipe = augment.recipe("moco_v2", min_scale=0.2)
    side = data.square_side(0, size=size, min_scale=recipe.min_scale)
    images = max(IMAGES, batch)
    shape = (images, side, 3, side)
    squares = Squares(
        torch.randint(0, 256, shape, dtype=torch.uint8, device=device),
        shapes=np.full((images, 2), side),
        used=np.arange(images),
    )
    listed = data.ImageList("made", [""] * images, None, [])
    spec = data.ViewSpec(recipe, size=size, views=2, seed=0)
    rows = RowSet(listed, spec, squares)
    order = data.Order(images, batch, seed=0, start=0, stop=2**31)
    finish = ViewsOnDevice(squares, spec)
    if whole:
        finish.make = finish.make.make  # type: ignore[assignment]
    pin = device.type == "cuda"
    return iter(data.BatchLoader(rows, order, workers=WORKERS, pin=pin, finish=finish))


def ours(
    batches: Iterator[data.RawBatch],
    *,
    arch: str,
    device: torch.device,
    bfloat16: bool,
    groups: int,
    compiled: bool,
    inductor: bool,
) -> Step:
    """Our step from batches on, whose pixels [N, V, S, S, 3] are uint8 on the device."""
    pairs = {
        "ENCODER.ARCH": arch,
        "ENCODER.HEAD": "mlp",
        "ENCODER.BN_SPLITS": groups,
        "MOCO.K": NEGATIVES,
        "SOLVER.MAX_ITER": 1,
    }
    cfg = load_config(None, [str(part) for pair in pairs.items() for part in pair])
    method = build_method(cfg, images=None, classes=None, bfloat16=bfloat16)
    method.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    if inductor:
        for child in method.children():
            if isinstance(child, Encoder):
                child.trunk.compile()
    optimizer = torch.optim.SGD(
        [p for p in method.parameters() if p.requires_grad],
        0.03,
        momentum=0.9,
        weight_decay=1e-4,
        fused=True,
    )

    def compute(batch: Batch) -> dict[str, Tensor]:
        outcome = method(batch, method.prepare(batch))
        optimizer.zero_grad(set_to_none=True)
        outcome.loss.backward()
        optimizer.step()
        method.after_step(batch.indices, outcome.features)
        return {"loss": outcome.loss.detach()}

    if compiled and device.type == "cuda":
        compute = CapturedStep(compute, settled=lambda: True)  # type: ignore[assignment]

    def step() -> Tensor:
        raw = next(batches)
        views = tuple(augment.normalise(view) for view in raw.pixels.unbind(dim=1))
        return compute(Batch(views, raw.indices))["loss"]

    return step


def networks(pixels: Tensor, *, arch: str, device: torch.device, bfloat16: bool) -> Step:
    """Forward and backward of one trunk and forward of another."""
    query, key = (
        ARCHITECTURES[arch](nn.BatchNorm2d).to(device).to(memory_format=torch.channels_last).train()
        for _ in range(2)
    )
    views = [augment.normalise(view) for view in pixels.unbind(dim=1)]

    def step() -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
            with torch.no_grad():
                key(views[1])
            total = query(views[0]).float().sum()
        for parameter in query.parameters():
            parameter.grad = None
        total.backward()
        return total.detach()

    return step


def rate(step: Step, images: int, seconds: float, device: torch.device) -> float:
    """Images a second over whole steps that take at least so long."""
    cuda = device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    at_once = 10 if cuda else 1  # a loop does not wait for the device after each step either
    count, start = 0, clock()
    while True:
        for _ in range(at_once):
            step()
        count += at_once * images
        if cuda:
            torch.cuda.synchronize()
        spent = clock() - start
        if spent >= seconds:
            return count / spent


def table(rates: dict[str, list[float]]) -> list[str]:
    """A line a contender: the median rate, its ratio to the first and to the last of the round."""
    first, last = list(rates)[0], list(rates)[-1]
    lines = [f"{'':34}{'images/s':>10}{'to ' + first:>16}{'to ' + last:>20}"]
    for name, values in rates.items():
        to_first, to_last = (
            statistics.median(a / b for a, b in zip(values, rates[other], strict=True))
            for other in (first, last)
        )
        median = statistics.median(values)
        lines.append(f"{name:34}{median:10.2f}{to_first:16.2f}{to_last:20.2f}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure in turn, print the table."""
    p = argparse.ArgumentParser(description="MoCo steps, images/s, in turn.")
    p.add_argument("--arch", default="resnet50", choices=sorted(ARCHITECTURES))
    p.add_argument("--size", type=int, default=224)
    p.add_argument("--batch", type=int, default=16, help="images a step")
    p.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    p.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    p.add_argument("--threads", type=int, default=0, help="of the CPU (default: torch's choice)")
    p.add_argument("--groups", type=int, default=0, help="ENCODER.BN_SPLITS of ours")
    p.add_argument("--compile", action="store_true", help="our step with COMPILE too")
    p.add_argument("--views", action="store_true", help="ours with views made in the step too")
    p.add_argument("--inductor", action="store_true", help="and with compiled trunks in the graph")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=5.0, help="of one contender in one round")
    add_rows_option(p)
    args = p.parse_args(argv)
    device = pick_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape = (args.batch, 2, args.size, args.size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
    bfloat16 = args.precision == "bfloat16"
    shared: dict[str, Any] = {"arch": args.arch, "device": device}
    contenders = {"reference": reference(pixels, **shared)}
    numbers = torch.arange(args.batch, device=device)
    here = itertools.repeat(data.RawBatch(pixels, numbers, numbers, []))
    # which contenders there are: name, its batches, whether with COMPILE, whether by torch.compile
    graph = (args.compile, args.compile and device.type != "cuda")
    ways: list[tuple[str, Iterator[data.RawBatch], bool, bool]] = [("", here, False, False)]
    if args.compile:
        ways.append((", COMPILE", here, *graph))
    if args.inductor:
        ways.append((", COMPILE + torch.compile", here, True, True))
    if args.views:
        made = made_views(batch=args.batch, size=args.size, device=device)
        if device.type == "cpu":
            whole = made_views(batch=args.batch, size=args.size, device=device, whole=True)
            contenders["views of whole batches"] = lambda: next(whole).pixels
        ways.append((f"{', COMPILE' if args.compile else ''}, with views", made, *graph))
        contenders["views alone"] = lambda: next(made).pixels
    for name, batches, compiled, inductor in ways:
        contenders[f"ours, {args.precision}{name}"] = ours(
            batches,
            **shared,
            bfloat16=bfloat16,
            groups=args.groups,
            compiled=compiled,
            inductor=inductor,
        )
    contenders["networks alone"] = networks(pixels, **shared, bfloat16=bfloat16)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"torch {torch.__version__}, {where}, {torch.get_num_threads()} threads, {args.arch} at "
          f"{args.size} px, batch {args.batch}")  # fmt: skip
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    with tqdm(total=(args.rounds + 1) * len(contenders), desc="measuring") as bar:
        for number in range(args.rounds + 1):
            for name, step in contenders.items():
                seconds = args.seconds if number else 0.0  # the first round warms up
                found = rate(step, args.batch, seconds, device)
                if number:
                    rates[name].append(found)
                bar.update()
    print("\n".join(table(rates)))
    case = f"{args.arch} {args.size} px, batch {args.batch}, {args.groups or 1} BN group(s)"
    for name in list(rates)[1:-1]:
        first, last = list(rates)[0], list(rates)[-1]
        for peer in (first, last) if name.startswith("ours") else (last,):
            write_row(
                args.rows,
                what="MoCo step",
                case=case,
                peer=peer,
                ours=name,
                unit="images/s",
                there=rates[peer],
                here=rates[name],
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
