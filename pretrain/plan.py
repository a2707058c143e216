"""What a run will need, said before it starts: memory, steps, time, disk.

State is counted on torch's meta device, so that a bank of a billion rows costs nothing to plan.
Activations are counted in a real forward pass of two images: what autograd keeps for backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from moco_det.foundation.errors import InputError
from pretrain import checkpoints, data
from pretrain.config import CfgNode, check
from pretrain.encoders import Encoder
from pretrain.methods import (
    EndToEnd,
    InstDiscNCE,
    InstDiscParametric,
    MemoryBank,
    Method,
    Supervised,
    bn_splits_per_process,
    build_method,
)

GIB = 2**30
# What a GPU's process takes beside tensors: the CUDA context and the convolutions' work space.
# An allowance, not a measurement.
OVERHEAD = 2 * GIB
# The published run that times are scaled from where no rate is given: MoCo, ResNet-50, 224 px, 200
# epochs of ImageNet's 1,281,167 images in 53 hours on 8 V100 (README of the released code).
REFERENCE_RATE = 1_281_167 * 200 / (53 * 3600) / 8  # images a second and GPU
REFERENCE_FLOPS = 4 * 2 * 4.089e9  # of an image's step there: ResNet-50's multiply-adds, 4 passes
# How many matrices of scores [n, K + 1] in float32 a step holds at its peak: similarities, logits,
# their softmax and its gradient.
SCORE_COPIES = 4


@dataclass(frozen=True)
class Plan:
    """Bytes of one process, and of its host; `images_per_second` are those of all processes."""

    method: str
    arch: str
    images: int
    processes: int
    batch: int
    steps: int  # iterations in all
    steps_per_epoch: int
    encoders: int
    dictionary: int  # queue, bank or classifier
    training: int  # gradients, momentum, and the buckets that several processes send
    activations: int
    scores: int
    resident: int  # the images themselves, by DATA.ON_DEVICE
    overhead: int
    host: int
    checkpoint: int
    gigaflops: float  # of one image's step
    images_per_second: float | None  # None where no rate is known
    rate_source: str
    warnings: tuple[str, ...]

    @property
    def device(self) -> int:
        """Bytes of one process on its device, at the peak of a step."""
        state = self.encoders + self.dictionary + self.training + self.resident
        return state + self.activations + self.scores + self.overhead

    @property
    def hours(self) -> float | None:
        """Time of the whole run, None where no rate is known."""
        if self.images_per_second is None:
            return None
        return self.steps * self.batch / self.images_per_second / 3600

    def lines(self) -> list[str]:
        """The plan as a table."""
        epochs = self.steps / self.steps_per_epoch
        rate, time = "no rate", "not known"
        if self.images_per_second is not None and self.hours is not None:
            digits = 0 if self.images_per_second >= 10 else 1
            rate = f"{self.images_per_second:,.{digits}f} images/s"
            time = duration(self.hours)
        rows = [
            ("encoders", self.encoders, "weights of all encoders and heads"),
            ("dictionary", self.dictionary, "queue, bank or classifier"),
            ("training", self.training, "gradients, momentum, buckets"),
            ("activations", self.activations, f"{self.batch // self.processes} images a step"),
            ("scores", self.scores, "similarities and their gradients"),
            *([("images", self.resident, "the set, DATA.ON_DEVICE")] if self.resident else []),
            ("overhead", self.overhead, "allowance for CUDA's context and work space"),
            ("a process", self.device, "sum"),
            ("its host", self.host, "names of images, cached images, batches made ahead"),
            ("on disk", self.checkpoint * (checkpoints.KEEP + 1), "checkpoints that are kept"),
        ]
        return [
            f"{self.method} {self.arch}, {self.images:,} images, {self.processes} "
            f"process{'es' if self.processes > 1 else ''}, batch {self.batch}",
            f"{self.steps:,} iterations, {epochs:,.2f} epochs of {self.steps_per_epoch:,}",
            *(f"  {name:12}{size(bytes_):>12}  {what}" for name, bytes_, what in rows),
            f"{self.gigaflops:.1f} GFLOP an image's step; {rate} {self.rate_source}",
            f"time: {time}",
            *(f"warning: {line}" for line in self.warnings),
        ]


def make_plan(
    cfg: CfgNode,
    *,
    images: int,
    gpus: int,
    rate: float | None = None,
    measured: bool = False,
    classes: int | None = None,
    bfloat16: bool | None = None,
) -> Plan:
    """The plan of `cfg` over so many images on `gpus` GPUs, 0 for one process on the CPU.

    `rate` is the images a second and process, given or `measured`; without it the published one of
    a V100 is scaled by the floating-point operations, for GPUs alone. Raises InputError for a
    config that cannot run so.
    """
    check(cfg)
    processes = max(1, gpus)
    if images < 1:
        raise InputError(f"--images {images}: it must be at least 1")
    data.check_enough(images, cfg.SOLVER.BATCH, "--images: the set")
    share = data.share_of(cfg.SOLVER.BATCH, processes)
    parts = cfg.SOLVER.ACCUMULATE
    bn_splits_per_process(cfg.ENCODER.BN_SPLITS, processes=processes, parts=parts)
    if bfloat16 is None:
        bfloat16 = cfg.PRECISION == "bfloat16" or (cfg.PRECISION == "auto" and gpus > 0)
    with torch.device("meta"):
        method = build_method(cfg, images=images, classes=classes or 1000, bfloat16=bfloat16)
    encoders = sum(_state(child) for child in method.children() if isinstance(child, Encoder))
    trained = sum(p.numel() * p.element_size() for p in method.parameters() if p.requires_grad)
    steps_per_epoch = data.steps_per_epoch(images, cfg.SOLVER.BATCH)
    flops = step_flops(method, size=cfg.AUGMENT.SIZE)
    source = "as measured here" if measured else "as given"
    if rate is None and gpus == 0:
        source = "of a CPU is published; --measure takes one here"
    elif rate is None:
        rate = REFERENCE_RATE * REFERENCE_FLOPS / flops
        source = f"by scaling the published 53 hours on 8 V100 ({REFERENCE_RATE:.0f} a GPU)"
    trunks = 2 if isinstance(method, EndToEnd) else 1  # that keep their activations
    one = saved_bytes(cfg.ENCODER.ARCH, size=cfg.AUGMENT.SIZE, bfloat16=bfloat16)
    pixels = cfg.AUGMENT.SIZE**2 * 3 * method.views
    resident = images * _square_bytes(cfg) if cfg.DATA.ON_DEVICE else 0
    return Plan(
        method=method.name,
        arch=cfg.ENCODER.ARCH,
        images=images,
        processes=processes,
        batch=cfg.SOLVER.BATCH,
        steps=cfg.SOLVER.MAX_ITER or cfg.SOLVER.EPOCHS * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        encoders=encoders,
        dictionary=_state(method) - encoders,
        training=trained * (3 if processes > 1 else 2),
        # The views lie there as uint8 and as float32 beside what autograd keeps.
        activations=one * (share // parts) * trunks + share * pixels * 5,
        scores=_scores(method, share // parts, images),
        resident=resident,
        overhead=OVERHEAD if gpus else 0,
        host=_host(cfg, images, share * pixels),
        checkpoint=_state(method) + trained,
        gigaflops=flops / 1e9,
        images_per_second=None if rate is None else rate * processes,
        rate_source=source,
        warnings=tuple(method.warnings(batch=cfg.SOLVER.BATCH, images=images)),
    )


def refuse_what_cannot_fit(plan: Plan, *, memory: float, host_memory: float | None) -> None:
    """Raise InputError where a process or its host needs more than so many GiB."""
    if plan.device > memory * GIB:
        largest = max(
            (plan.dictionary, "the dictionary"),
            (plan.activations, "the activations: raise the number of GPUs or SOLVER.ACCUMULATE, or "
             "lower SOLVER.BATCH"),
            (plan.scores, "the scores: lower the number of negatives or SOLVER.BATCH"),
            (plan.resident, "the images: set DATA.ON_DEVICE False, or DATA.SHORTER_SIDE to a "
             "smaller square"),
            (plan.encoders + plan.training, "encoders and optimizer: choose a smaller one"),
        )  # fmt: skip
        why = largest[1]
        if why == "the dictionary":
            why += (
                ": METHOD moco has a queue that does not grow with the images, and BANK.DTYPE "
                "float16 halves a bank"
            )
        raise InputError(
            f"does not fit: a process needs {size(plan.device)} and has {memory:g} GiB; most of it "
            f"({size(largest[0])}) is {why}"
        )
    if host_memory is not None and plan.host > host_memory * GIB:
        raise InputError(
            f"does not fit: a host needs {size(plan.host)} for a process and has {host_memory:g} "
            "GiB: use WebDataset shards for DATA.PATH, or lower DATA.CACHE_MB"
        )


def saved_bytes(arch: str, *, size: int, bfloat16: bool) -> int:
    """Bytes that autograd keeps of one image's forward pass through the trunk."""
    trunk = Encoder(arch, head="fc", dim=1).trunk.to(memory_format=torch.channels_last).train()

    def kept(images: int) -> int:
        storages: dict[int, int] = {}
        alive: list[Tensor] = []  # a storage that were freed could lend its address to the next one

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
            return tensor

        pixels = torch.zeros(images, 3, size, size).contiguous(memory_format=torch.channels_last)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16),
        ):
            trunk(pixels)
        return sum(storages.values())

    # weights, and what is made of them, are kept however many images there are
    return (kept(4) - kept(2)) // 2


def step_flops(method: Method, *, size: int) -> float:
    """Floating-point operations of an image's step through the trunks; backward counts twice."""
    trunk = method.encoder.trunk
    pixels = torch.zeros(1, 3, size, size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        trunk.eval()(pixels)
    forward = counter.get_total_flops()
    passes = 3.0
    if isinstance(method, EndToEnd):
        passes = 6.0
    elif method.views == 2:
        passes = 4.0  # the keys' encoder has no backward pass
    return float(forward) * passes


def size(count: int) -> str:
    """Bytes in MiB or GiB."""
    return f"{count / GIB:,.2f} GiB" if count >= GIB else f"{count / 2**20:,.1f} MiB"


def duration(hours: float) -> str:
    """Days, hours or minutes."""
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"


def _state(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in _tensors(module))


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _scores(method: Method, share: int, images: int) -> int:
    if isinstance(method, InstDiscParametric | Supervised):
        columns = images if isinstance(method, InstDiscParametric) else method.classes
    else:
        columns = (method.dictionary_size or 0) + 1
    total = SCORE_COPIES * share * columns * 4
    if isinstance(method, MemoryBank | InstDiscNCE) and not method.draw.shared:
        count = method.draw.count
        # The drawn rows for each query, or all similarities at once: see Bank.similarity.
        rows = images if method.bank.dense(count) else count * method.bank.rows.shape[1]
        total += share * rows * 4
    return total


def _square_bytes(cfg: CfgNode) -> int:
    side = data.square_side(
        cfg.DATA.SHORTER_SIDE, size=cfg.AUGMENT.SIZE, min_scale=cfg.AUGMENT.MIN_SCALE
    )
    return side**2 * 3


def _host(cfg: CfgNode, images: int, batch_bytes: int) -> int:
    listed = 0 if data.is_shards(cfg.DATA.PATH) else images * NAME_BYTES
    cache = 0 if cfg.DATA.ON_DEVICE else cfg.DATA.CACHE_MB * 2**20  # at most
    return listed + cache + max(1, cfg.DATA.WORKERS) * AHEAD * batch_bytes


# A name such as n01440764/n01440764_10026.JPEG, its end and its label.
NAME_BYTES = 31 + 4 + 8
AHEAD = 4  # batches that each worker makes ahead
