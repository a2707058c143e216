"""Where a run computes, and in which precision."""

from __future__ import annotations

import platform

import torch

from pretrain.errors import InputError


def pick_device(name: str) -> torch.device:
    """The device of a DEVICE key; InputError where CUDA is asked for and absent."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("DEVICE is cuda and torch sees no GPU: use DEVICE cpu or auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether a PRECISION key means bfloat16 autocast on this device.

    `auto` takes it where it is faster: GPUs with bf16 units, CPUs with matrix tiles (AMX) or ARM's
    bf16. With AVX-512 bf16 alone a step is slower than in float32, so it is left to the user.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return platform.machine() not in ("x86_64", "AMD64") or torch.cpu._is_amx_tile_supported()
