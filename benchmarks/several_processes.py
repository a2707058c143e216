"""What several processes send per step, and what DDP's options change: counted on a CPU.

    python benchmarks/several_processes.py [--data coco://instances.json?images=DIR]

A group of one process over gloo sends what each of eight would. `--data` also reads images as the
detectors do, on one thread; a rate is per second that the processor spent.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from moco_det.data import load_dataset
from moco_det.resnet.layers import SyncBatchNorm2d
from moco_det.settings.config import load_config
from moco_det.standalone.build import build_detector, build_mapper
from moco_det.standalone.detector import GeneralizedRCNN
from moco_det.standalone.targets import Targets
from moco_det_tools.entry import run
from pretrain.build import build_method
from pretrain.config import load_config as load_pretraining
from pretrain.methods.base import Batch

DETECTORS = ("coco_R50_FPN_1x_moco", "voc_R50_C4_24k_moco")
PRETRAINING = "moco_v2_r50_in1m_200ep"
OPTIONS: tuple[dict[str, bool], ...] = (
    {},
    {"gradient_as_bucket_view": True},
    {"gradient_as_bucket_view": True, "static_graph": True},
)


def detector(name: str) -> GeneralizedRCNN:
    """The detector of a config, on the CPU, in training."""
    torch.manual_seed(0)
    return build_detector(load_config(f"configs/{name}.yaml", ["MODEL.DEVICE", "cpu"])).train()


def steps(
    model: GeneralizedRCNN, count: int, **options: bool
) -> tuple[DistributedDataParallel, Any]:
    """Forward and backward of two images of 128 px; the calls of the last step."""
    wrapped = DistributedDataParallel(model, broadcast_buffers=False, **options)
    square = np.array([8.0, 8, 72, 8, 72, 72, 8, 72])
    boxes, classes = torch.tensor([[8.0, 8, 72, 72]]), torch.tensor([1])
    for _ in range(count):
        model.zero_grad()
        torch.manual_seed(0)  # the same regions in every step
        images = [torch.randint(256, (3, 128, 128)).float() for _ in range(2)]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            losses = wrapped(images, [Targets(boxes, classes, [[square]]) for _ in images])
            sum(losses.values()).backward()
    return wrapped, profile


def with_options(_: int, number: int) -> None:
    """Print what a step costs the host with one set of DDP's options."""
    options = OPTIONS[number]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    torch.set_num_threads(1)
    _, profile = steps(detector(DETECTORS[0]), 3, **options)
    calls = {event.key: event.count for event in profile.key_averages()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{', '.join(options) or 'no option'}: {calls['aten::copy_']:,} copies, "
        f"{calls['aten::item']} scalars read, peak {peak:,.0f} MiB",
        flush=True,
    )
    dist.destroy_process_group()


def detector_messages(name: str) -> str:
    """What a card sends per step of a detector."""
    model = detector(name)
    norms = [m.num_features for m in model.modules() if isinstance(m, SyncBatchNorm2d)]
    wrapped, _ = steps(model, 3, gradient_as_bucket_view=True)
    return (
        f"{name}: {gradients(wrapped)}; {len(norms)} SyncBN, "
        f"{4 * (2 * sum(norms) + len(norms)):,} bytes forward and {8 * sum(norms):,} backward"
    )


def pretraining_messages(name: str, processes: int = 8) -> str:
    """What a card sends per step of MoCo; the queue is short here, for it is not sent."""
    cfg = load_pretraining(f"configs/pretrain/{name}.yaml", ["MOCO.K", "256"])
    torch.manual_seed(0)
    method = build_method(cfg, images=256, classes=1000, bfloat16=False).train()
    wrapped = DistributedDataParallel(method, broadcast_buffers=False, gradient_as_bucket_view=True)
    pixels = torch.randn(16, 3, 64, 64)
    keys = F.normalize(torch.randn(16, cfg.ENCODER.DIM), dim=1)
    for _ in range(3):
        method.zero_grad()
        wrapped(Batch((pixels, pixels), torch.arange(16)), keys).loss.backward()
    share = cfg.SOLVER.BATCH // processes
    return (
        f"{name}: {gradients(wrapped)}; {share} images per process, "
        f"{share * 3 * cfg.AUGMENT.SIZE**2 * 4:,} bytes of key views and "
        f"{share * cfg.ENCODER.DIM * 4:,} of keys"
    )


def gradients(wrapped: DistributedDataParallel) -> str:
    """Parameters that are trained, and the messages their gradients are sent in.

    The second step has the final buckets, and the third tells them.
    """
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    count = sum(p.numel() for p in trained)
    buckets = wrapped._get_ddp_logging_data()["rebuilt_bucket_sizes"]
    return (
        f"{count:,} parameters in {len(trained)} tensors, {4 * count:,} bytes of gradients in "
        f"buckets of {buckets}"
    )


def reading_rate(uri: str) -> str:
    """Images per second of CPU time, read and resized for training."""
    records = load_dataset(uri).records
    mapper = build_mapper(load_config(f"configs/{DETECTORS[0]}.yaml"), train=True)
    random, rates = np.random.RandomState(0), []
    for _ in range(6):
        start = time.process_time()
        sizes = [mapper(record, random).image.numel() for record in records]
        rates.append(len(records) / (time.process_time() - start))
    told = ", ".join(f"{rate:.1f}" for rate in sorted(rates[1:]))
    return f"{len(records)} images, {np.mean(sizes) / 1e6:.2f} MB each: {told} images/s"


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line per count."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--data", metavar="URI", help="a data set to read")
    args = p.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    for number in range(len(OPTIONS)):  # each in a process of its own, for its peak
        torch.multiprocessing.spawn(with_options, (number,))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for name in DETECTORS:
        print(detector_messages(name))
    print(pretraining_messages(PRETRAINING))
    if args.data:
        print(reading_rate(args.data))
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
