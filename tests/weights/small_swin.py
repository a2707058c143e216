"""A Swin small enough to mutate tensor by tensor, under the name swin_micro; importing registers
it with timm."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.swin_transformer import (
    SwinTransformer,
    _cfg,
    _create_swin_transformer,
    checkpoint_filter_fn,
)

__all__ = ["checkpoint_filter_fn"]  # how timm reads files of it

default_cfgs = generate_default_cfgs({"swin_micro.none": _cfg()})


@register_model
def swin_micro(pretrained: bool = False, **keys: Any) -> SwinTransformer:
    size = {"window_size": 4, "embed_dim": 16, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 2, 4)}
    return _create_swin_transformer("swin_micro", pretrained=pretrained, **{**size, **keys})
