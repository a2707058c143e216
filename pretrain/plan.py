"""What a run will need, said before it starts: memory, steps, time, disk.

State is counted on torch's meta device, so that a bank of a billion rows costs nothing to plan.
Activations are counted in a real forward pass of two images: what autograd keeps for backward.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from moco_det.foundation.errors import InputError
from moco_det.foundation.precision import pick_device, use_bfloat16
from pretrain import checkpoints, data
from pretrain.build import bn_splits_per_process, build_method, place
from pretrain.config import PretrainConfig
from pretrain.encoders import Encoder
from pretrain.loop import compute_step
from pretrain.methods.base import Batch, Method
from pretrain.methods.inst_disc import InstDiscNCE, InstDiscParametric
from pretrain.methods.memory_bank import MemoryBank
from pretrain.methods.supervised import Supervised

GIB = 2**30
# What a GPU's process takes beside tensors: the CUDA context and the convolutions' work space.
# An allowance, not a measurement.
OVERHEAD = 2 * GIB
# The published run that times are scaled from where no rate is given: MoCo, ResNet-50, 224 px, 200
# epochs of ImageNet's 1,281,167 images in 53 hours on 8 V100 (README of the released code).
REFERENCE_RATE = 1_281_167 * 200 / (53 * 3600) / 8  # images per second and GPU
REFERENCE_FLOPS = 4 * 2 * 4.089e9  # of an image's step there: ResNet-50's multiply-adds, 4 passes
# How many matrices of scores [n, K + 1] in float32 a step holds at its peak: similarities, logits,
# their softmax and its gradient.
SCORE_COPIES = 4
# A name such as n01440764/n01440764_10026.JPEG, its end and its label.
NAME_BYTES = 31 + 4 + 8
AHEAD = 4  # batches that each worker makes ahead
SECONDS = 20.0  # of a measurement
MEASURED_IMAGES = 4096  # rows of the bank: the rate hardly depends on it

# What lies on a process's device at the peak of a step, and what makes it smaller.
PARTS = {
    "encoders": ("weights of all encoders and heads", "choose a smaller ENCODER.ARCH"),
    "dictionary": ("queue, bank or classifier", "use METHOD moco, or a bank of BANK.DTYPE float16"),
    "training": ("gradients, momentum, buckets", "choose a smaller ENCODER.ARCH"),
    "activations": (
        "what backward needs",
        "raise --gpus or SOLVER.ACCUMULATE, or lower SOLVER.BATCH",
    ),
    "scores": ("similarities and their gradients", "lower the negatives or SOLVER.BATCH"),
    "images": ("the set, DATA.ON_DEVICE", "set DATA.ON_DEVICE False, or lower DATA.SHORTER_SIDE"),
    "overhead": ("allowance for CUDA's context and work space", "take a larger GPU"),
}


@dataclass(frozen=True)
class PretrainPlan:
    """What a run needs; `images_per_second` are those of all processes."""

    title: str
    batch: int
    steps: int  # iterations in all
    steps_per_epoch: int
    parts: Mapping[str, int]  # bytes of one process on its device, by the names in PARTS
    host: int  # bytes of one process beside its device
    checkpoint: int  # bytes
    gigaflops: float  # of one image's step
    images_per_second: float | None  # None where no rate is known
    rate_source: str
    warnings: tuple[str, ...]

    @property
    def device(self) -> int:
        """Bytes of one process on its device, at the peak of a step."""
        return sum(self.parts.values())

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
            *((name, count, PARTS[name][0]) for name, count in self.parts.items()),
            ("per process", self.device, "sum"),
            ("its host", self.host, "names of images, cached images, batches made ahead"),
            ("on disk", self.checkpoint * (checkpoints.KEEP + 1), "checkpoints that are kept"),
        ]
        return [
            self.title,
            f"{self.steps:,} iterations, {epochs:,.2f} epochs of {self.steps_per_epoch:,}",
            *(f"  {name:12}{size(count):>12}  {what}" for name, count, what in rows),
            f"{self.gigaflops:.1f} GFLOP per image's step; {rate} {self.rate_source}",
            f"time: {time}",
            *(f"warning: {line}" for line in self.warnings),
        ]

    def refuse_what_cannot_fit(self, *, memory: float, host_memory: float | None) -> None:
        """Raise InputError where a process or its host needs more than so many GiB."""
        if self.device > memory * GIB:
            largest = max(self.parts, key=lambda name: self.parts[name])
            raise InputError(
                f"does not fit: a process needs {size(self.device)} and has {memory:g} GiB; most "
                f"of it ({size(self.parts[largest])}) is the {largest}: {PARTS[largest][1]}"
            )
        if host_memory is not None and self.host > host_memory * GIB:
            raise InputError(
                f"does not fit: a host needs {size(self.host)} for a process and has "
                f"{host_memory:g} GiB: use WebDataset shards for DATA.PATH, or lower DATA.CACHE_MB"
            )


def make_plan(
    cfg: PretrainConfig,
    *,
    images: int,
    gpus: int,
    rate: float | None = None,
    measured: bool = False,
    classes: int = 1000,
) -> PretrainPlan:
    """The plan of `cfg` over so many images on `gpus` GPUs, 0 for one process on the CPU.

    `rate` is the images per second and process, given or `measured`; without it the published one
    of a V100 is scaled by the floating-point operations, for GPUs alone. Raises InputError for a
    config that cannot run so.
    """
    processes, batch = max(1, gpus), cfg.SOLVER.BATCH
    data.check_enough(images, batch, "--images: the set")
    bn_splits_per_process(cfg, processes)
    share = data.share_of(batch, processes)
    part = share // cfg.SOLVER.ACCUMULATE
    bfloat16 = cfg.PRECISION == "bfloat16" or (cfg.PRECISION == "auto" and gpus > 0)
    with torch.device("meta"):
        method = build_method(cfg, images=images, classes=classes, bfloat16=bfloat16)
    encoders = sum(_bytes(child) for child in method.children() if isinstance(child, Encoder))
    trained = sum(p.nbytes for p in method.parameters() if p.requires_grad)
    steps_per_epoch = data.steps_per_epoch(images, batch)
    flops = step_flops(method, size=cfg.AUGMENT.SIZE)
    source = "as measured here" if measured else "as given"
    if rate is None and gpus == 0:
        source = "of a CPU is published; --measure takes one here"
    elif rate is None:
        rate = REFERENCE_RATE * REFERENCE_FLOPS / flops
        source = f"by scaling the published 53 hours on 8 V100 ({REFERENCE_RATE:.0f} per GPU)"
    trunks = method.passes // 3  # that keep their activations
    saved = saved_bytes(cfg.ENCODER.ARCH, size=cfg.AUGMENT.SIZE, bfloat16=bfloat16)
    pixels = share * cfg.AUGMENT.SIZE**2 * 3 * method.views
    parts = {
        "encoders": encoders,
        "dictionary": _bytes(method) - encoders,
        # several processes send their gradients in buckets
        "training": trained * (3 if processes > 1 else 2),
        # The views lie there as uint8 and as float32 beside what autograd keeps.
        "activations": saved * part * trunks + pixels * 5,
        "scores": _scores(method, part, images),
    }
    if cfg.DATA.ON_DEVICE:
        side = data.square_side(
            cfg.DATA.SHORTER_SIDE, size=cfg.AUGMENT.SIZE, min_scale=cfg.AUGMENT.MIN_SCALE
        )
        parts["images"] = images * side**2 * 3
    listed = 0 if data.is_shards(cfg.DATA.PATH) else images * NAME_BYTES
    cache = 0 if cfg.DATA.ON_DEVICE else cfg.DATA.CACHE_MB * 2**20  # at most
    return PretrainPlan(
        title=f"{method.name} {cfg.ENCODER.ARCH}, {images:,} images, {processes} "
        f"process{'es' if processes > 1 else ''}, batch {batch}, {share} images of it in each",
        batch=batch,
        steps=cfg.SOLVER.MAX_ITER or cfg.SOLVER.EPOCHS * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        parts={**parts, "overhead": OVERHEAD if gpus else 0},
        host=listed + cache + max(1, cfg.DATA.WORKERS) * AHEAD * pixels,
        checkpoint=_bytes(method) + trained,
        gigaflops=flops / 1e9,
        images_per_second=None if rate is None else rate * processes,
        rate_source=source,
        warnings=tuple(method.warnings(batch=batch, images=images)),
    )


def measured_rate(cfg: PretrainConfig) -> float:
    """Images per second of one process, over some twenty seconds of steps on random pixels."""
    device = pick_device(cfg.DEVICE)
    torch.manual_seed(cfg.SEED)
    bfloat16 = use_bfloat16(cfg.PRECISION, device)
    method = build_method(cfg, images=MEASURED_IMAGES, classes=1000, bfloat16=bfloat16)
    optimizer = place(method, cfg, device)
    optimizer.param_groups[0]["lr"] = 0.0
    count, side = cfg.SOLVER.BATCH, cfg.AUGMENT.SIZE
    pixels = [torch.randn(count, 3, side, side, device=device) for _ in range(method.views)]
    views = tuple(view.contiguous(memory_format=torch.channels_last) for view in pixels)
    numbers = torch.arange(count, device=device)
    batch = Batch(views, numbers % MEASURED_IMAGES, numbers % 1000)

    def step() -> None:
        float(compute_step(method, method, optimizer, batch)["loss"])  # waits for a GPU

    step()  # warms up
    steps, start, spent = 0, time.perf_counter(), 0.0
    with tqdm(desc="measuring", total=SECONDS, unit="s", mininterval=1) as bar:
        while not steps or spent < SECONDS:
            step()
            steps += 1
            spent = time.perf_counter() - start
            bar.update(min(spent, SECONDS) - bar.n)
    return steps * count / spent


def saved_bytes(arch: str, *, size: int, bfloat16: bool) -> int:
    """Bytes that autograd keeps of one image's forward pass through the trunk."""
    trunk = Encoder(arch, head="fc", dim=1).trunk.to(memory_format=torch.channels_last).train()

    def kept(images: int) -> int:
        # Kept alive: a storage that were freed could lend its address to the next one.
        storages: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage
            return tensor

        pixels = torch.zeros(images, 3, size, size).contiguous(memory_format=torch.channels_last)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16),
        ):
            trunk(pixels)
        return sum(storage.nbytes() for storage in storages.values())

    # weights, and what is made of them, are kept however many images there are
    return (kept(4) - kept(2)) // 2


def step_flops(method: Method, *, size: int) -> float:
    """Floating-point operations of an image's step through the trunks; backward counts twice."""
    pixels = torch.zeros(1, 3, size, size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        method.encoder.trunk.eval()(pixels)
    return float(counter.get_total_flops() * method.passes)


def size(count: int) -> str:
    """Bytes in MiB or GiB."""
    return f"{count / GIB:,.2f} GiB" if count >= GIB else f"{count / 2**20:,.1f} MiB"


def duration(hours: float) -> str:
    """Days, hours or minutes."""
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"


def _bytes(module: nn.Module) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def _scores(method: Method, images_per_part: int, images: int) -> int:
    columns = (method.dictionary_size or 0) + 1
    if isinstance(method, InstDiscParametric):
        columns = images
    elif isinstance(method, Supervised):
        columns = method.encoder.dim
    total = SCORE_COPIES * images_per_part * columns * 4
    if isinstance(method, MemoryBank | InstDiscNCE) and not method.shared_negatives:
        # The drawn rows for each query, or all similarities at once: see Bank.similarity.
        count = columns - 1
        dense, width = method.bank.dense(count), method.bank.rows.shape[1]
        total += images_per_part * (images if dense else count * width) * 4
    return total
