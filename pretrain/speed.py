"""How fast a method steps on this machine, without data: `tools/plan.py --measure`."""

from __future__ import annotations

import math
import time

import torch
from tqdm import tqdm

from moco_det.foundation.precision import pick_device, use_bfloat16
from pretrain.config import CfgNode
from pretrain.methods import Batch, build_method

SECONDS = 20.0
IMAGES = 4096  # rows of the bank: the rate hardly depends on it


def measured_rate(cfg: CfgNode) -> float:
    """Images a second of one process, over some twenty seconds of steps on random pixels."""
    device = pick_device(cfg.DEVICE)
    torch.manual_seed(cfg.SEED)
    method = build_method(
        cfg, images=IMAGES, classes=1000, bfloat16=use_bfloat16(cfg.PRECISION, device)
    )
    method.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    method.train()
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, fused=True)
    count, side = cfg.SOLVER.BATCH // cfg.SOLVER.ACCUMULATE, cfg.AUGMENT.SIZE
    views = tuple(
        torch.randn(count, 3, side, side, device=device).contiguous(
            memory_format=torch.channels_last
        )
        for _ in range(method.views)
    )
    numbers = torch.arange(count, device=device)
    batch = Batch(views, numbers % IMAGES, numbers % 1000)

    def step() -> None:
        outcome = method(batch, method.prepare(batch))
        optimizer.zero_grad(set_to_none=True)
        outcome.loss.backward()
        optimizer.step()
        method.after_step(batch.indices, outcome.features)
        float(outcome.loss.detach())  # waits for a GPU

    # The bar's total is a guess from the last step; one step after the warming up is the least.
    with tqdm(desc="measuring", unit="step", mininterval=1, total=2) as bar:
        step()  # warms up
        bar.update()
        steps, start = 0, time.perf_counter()
        while steps < 1 or time.perf_counter() - start < SECONDS:
            step()
            steps += 1
            spent = time.perf_counter() - start
            bar.total = 1 + steps + math.ceil(max(0.0, SECONDS - spent) * steps / spent)
            bar.update()
    return steps * count / (time.perf_counter() - start)
