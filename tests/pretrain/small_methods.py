"""Contrastive methods over a trunk that takes milliseconds, and a batch for them."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.encoders import Encoder
from pretrain.methods.base import Batch, Method, MethodOutput
from pretrain.methods.end_to_end import EndToEnd, EndToEndArgs
from pretrain.methods.moco import MoCo, MoCoArgs


def moco(*, splits: int = 2, shuffle: bool = True, momentum: float = 0.9, size: int = 12) -> MoCo:
    torch.manual_seed(0)
    encoder = Encoder("resnet18", head="mlp", dim=8, bn_splits=splits)
    return MoCo(encoder, MoCoArgs(K=size, M=momentum, T=0.1, SHUFFLE=shuffle)).train()


def end_to_end(*, splits: int = 1, shuffle: bool = True, shared: bool = False) -> EndToEnd:
    torch.manual_seed(0)
    encoder = Encoder("resnet18", head="fc", dim=8, bn_splits=splits)
    return EndToEnd(encoder, EndToEndArgs(T=0.1, SHUFFLE=shuffle, SHARED=shared), batch=8).train()


def batch(n: int = 8, *, views: int = 2) -> Batch:
    rng = torch.Generator().manual_seed(1)
    images = tuple(torch.randn(n, 3, 32, 32, generator=rng) for _ in range(views))
    return Batch(images, torch.arange(n), torch.arange(n) % 3)


def forward(method: Method, data: Batch) -> MethodOutput:
    return method(data, method.prepare(data))


def similarities(q: Tensor, k_pos: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Of each query [N, C] to its positive [N] and to negatives [K, C] or its own [N, K, C]."""
    shape = "nkc" if negatives.dim() == 3 else "kc"
    return (q * k_pos).sum(dim=1), torch.einsum(f"nc,{shape}->nk", q, negatives)
