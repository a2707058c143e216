"""Where a run computes, and in which precision."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from moco_det.foundation.errors import InputError


def pick_device(name: str, *, key: str = "DEVICE") -> torch.device:
    """The device of a key or an option: auto, cpu or cuda.

    InputError where CUDA is asked for and absent.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError(f"{key} is cuda and torch sees no GPU: use {key} cpu or auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether a PRECISION key means bfloat16 autocast on this device.

    `auto` takes it where it is faster: GPUs with bf16 units, CPUs with matrix tiles (AMX), AMD's
    with AVX-512 bf16 and ARM's with bf16. Intel's with AVX-512 bf16 alone were slower than in
    float32 (80 against 125 GFLOP/s in a matrix product), AMD's twice as fast (ResNet-50 at 224 px,
    one core).
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine() not in ("x86_64", "AMD64") or torch.cpu._is_amx_tile_supported():
        return True
    return fast_avx512_bfloat16(Path("/proc/cpuinfo"))


def fast_avx512_bfloat16(cpuinfo: Path) -> bool:
    """Whether Linux's description of the CPU is that of an AMD with AVX-512 bf16."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:  # another system
        return False
    return "AuthenticAMD" in text and "avx512_bf16" in text
