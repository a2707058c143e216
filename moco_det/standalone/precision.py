"""Which floating-point format a run computes in, and the machinery it needs."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


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


DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half formats widened to float32; float64 stays, so that a model can be checked in it."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def cpu_has_bfloat16() -> bool:
    """Whether the CPU computes faster in bfloat16: matrix tiles (AMX), AMD's AVX-512, ARM's bf16.

    Intel's AVX-512 BF16 without tiles is not enough: there a step takes longer than in float32.
    """
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine() not in ("x86_64", "AMD64") or torch.cpu._is_amx_tile_supported():
        return True
    return is_amd(Path("/proc/cpuinfo"))


def is_amd(cpuinfo: Path) -> bool:
    """Whether Linux calls the CPU one of AMD's; False where it says nothing."""
    try:
        return "AuthenticAMD" in cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:  # another system
        return False


def choose_precision(*, amp: bool, device: str) -> Precision:
    """SOLVER.AMP.ENABLED on this device: bfloat16 where it is fast, else float16 on a GPU."""
    if not amp:
        return Precision("float32", device)
    if device == "cuda":
        name = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        return Precision(name, device)
    if cpu_has_bfloat16():
        return Precision("bfloat16", device)
    note = "SOLVER.AMP.ENABLED, but this CPU is not faster in bfloat16"
    return Precision("float32", device, note)
