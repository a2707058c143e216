"""Which floating-point format a run computes in, and the machinery it needs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch


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
    def channels_last(self) -> bool:
        """The memory layout in which the low-precision kernels are fast."""
        return self.name != "float32"

    @property
    def needs_scaler(self) -> bool:
        """float16 gradients underflow without loss scaling (Micikevicius et al. 2018)."""
        return self.name == "float16"


DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX-512 BF16, AMX)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def choose_precision(*, amp: bool, device: str) -> Precision:
    """SOLVER.AMP.ENABLED on this device: bfloat16 where it is fast, else float16 on a GPU."""
    if not amp:
        return Precision("float32", device)
    if device == "cuda":
        name = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        return Precision(name, device)
    if cpu_has_bfloat16():
        return Precision("bfloat16", device)
    return Precision("float32", device, "SOLVER.AMP.ENABLED, but this CPU has no bfloat16 units")
