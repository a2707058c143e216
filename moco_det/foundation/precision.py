"""Where a run computes and in which floating-point format."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moco_det.foundation.errors import InputError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """``name`` is float32, bfloat16 or float16; ``note`` says why, where the reader might ask."""

    name: str
    device: str
    note: str = ""

    def autocast(self) -> AbstractContextManager[object]:
        """A context in which the matrix products run in this format."""
        if self.name == "float32":
            return nullcontext()
        return torch.autocast(self.device, dtype=DTYPES[self.name])

    @property
    def needs_scaler(self) -> bool:
        """float16 gradients underflow without loss scaling (Micikevicius et al. 2018)."""
        return self.name == "float16"


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half formats widened to float32; float64 stays, so that a model can be checked in it."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def pick_device(name: str, *, key: str = "DEVICE") -> torch.device:
    """The device of a key or an option: auto, cpu or cuda.

    InputError where CUDA is asked for and absent.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError(f"{key} is cuda and torch sees no GPU: use {key} cpu or auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def check_device_kind(name: str) -> str:
    """cpu or cuda, as MODEL.DEVICE (cuda, cuda:1, cpu) names it; InputError for anything else."""
    kind = name.split(":")[0]
    if kind not in ("cpu", "cuda"):
        raise InputError(f"MODEL.DEVICE is {name!r}: a run is made on cpu or cuda")
    return kind


def check_device(name: str) -> str:
    """As `check_device_kind`, and InputError where this machine lacks the device."""
    kind = check_device_kind(name)
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "MODEL.DEVICE is cuda, but this machine has no CUDA device: add MODEL.DEVICE cpu"
        )
    return kind


def bfloat16_is_fast(device: str) -> bool:
    """Whether "cpu" or "cuda" computes faster in bfloat16 than in float32.

    GPUs with bf16 units; CPUs with matrix tiles (AMX), AMD's with AVX-512 bf16 and ARM's with
    bf16. Intel's with AVX-512 bf16 alone were slower than in float32 (80 against 125 GFLOP/s in a
    matrix product), AMD's twice as fast (ResNet-50 at 224 px, one core).
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
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


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether a PRECISION key (auto, float32 or bfloat16) means bfloat16 autocast on a device."""
    return precision == "bfloat16" or (precision == "auto" and bfloat16_is_fast(device.type))


def choose_precision(*, amp: bool, device: str) -> Precision:
    """SOLVER.AMP.ENABLED on this device: bfloat16 where it is fast, else float16 on a GPU."""
    if not amp:
        return Precision("float32", device)
    if bfloat16_is_fast(device):
        return Precision("bfloat16", device)
    if device == "cuda":
        return Precision("float16", device)
    note = "SOLVER.AMP.ENABLED, but this CPU is not faster in bfloat16"
    return Precision("float32", device, note)
