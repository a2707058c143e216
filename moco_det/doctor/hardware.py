"""What the machine computes with: GPUs, NCCL between them, half precision."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from moco_det.doctor.finding import FAULT, NOTE, OK, Finding
from moco_det.doctor.packages import first_line

CUDA_BUILD = "install the CUDA build of torch: https://pytorch.org/get-started/locally"
DRIVER = "`nvidia-smi` must list one: update its driver for this CUDA; check CUDA_VISIBLE_DEVICES"


def check_hardware() -> Iterator[Finding]:
    """CUDA, NCCL and bfloat16; nothing where torch itself cannot be imported."""
    try:
        import torch
    except Exception:  # check_torch has said so already
        return
    if torch.cuda.is_available():
        yield from check_gpus()
    else:
        yield no_gpu(torch.version.cuda, driver=shutil.which("nvidia-smi") is not None)
    yield cpu_precision()
    yield from check_load()


def check_load() -> Iterator[Finding]:
    """A note where other programs want the cores that torch's threads are to run on."""
    if "OMP_NUM_THREADS" in os.environ or not hasattr(os, "getloadavg"):
        return
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load >= 1.5 * cores:
        yield Finding(
            NOTE,
            f"other programs keep the {cores} cores busy (load {load:.1f}): torch's threads wait "
            "for each other then, and a step on the CPU can take many times as long; "
            "OMP_NUM_THREADS=1 avoids that",
        )


def no_gpu(cuda: str | None, *, driver: bool) -> Finding:
    """Why torch sees no GPU; ``driver`` says whether NVIDIA's tools are installed."""
    if cuda is None and driver:
        return Finding(FAULT, "torch is a build without CUDA on a machine with a GPU", CUDA_BUILD)
    if driver:
        return Finding(FAULT, f"torch is built for CUDA {cuda}, but sees no GPU", DRIVER)
    why = f"no GPU (torch is built for CUDA {cuda})" if cuda else "torch is a build without CUDA"
    return Finding(NOTE, f"{why}: runs need MODEL.DEVICE cpu")


def check_gpus() -> Iterator[Finding]:
    """Every GPU adds two numbers; NCCL; the precision that SOLVER.AMP gives."""
    import torch

    count = torch.cuda.device_count()
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        what = f"GPU {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        try:
            (torch.ones(8, device=f"cuda:{index}") + 1).sum().item()
        except RuntimeError as error:
            yield Finding(FAULT, f"{what}: {first_line(error)}", CUDA_BUILD)
        else:
            yield Finding(OK, what)
    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        version = ".".join(map(str, torch.cuda.nccl.version()))
        yield Finding(OK, f"NCCL {version}: --num-gpus up to {count}")
    else:
        yield Finding(FAULT, "torch has no NCCL: --num-gpus 1 alone works", CUDA_BUILD)
    name = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    yield Finding(OK, f"SOLVER.AMP.ENABLED on the GPU: {name} on standalone, float16 on detectron2")


def cpu_precision() -> Finding:
    """The precision of SOLVER.AMP on the CPU."""
    from moco_det.foundation.precision import bfloat16_is_fast

    name = "bfloat16" if bfloat16_is_fast("cpu") else "float32 (this CPU is not faster in bfloat16)"
    what = f"SOLVER.AMP.ENABLED on the CPU: {name} on standalone, float32 on detectron2"
    return Finding(OK, what)
