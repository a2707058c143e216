"""A RegNet-Y of five blocks, to mutate tensor by tensor, under the name regnety_micro; importing
registers it with timm."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.regnet import RegNet, RegNetCfg, _cfg, _filter_fn

__all__ = ["_filter_fn"]  # how timm reads files of it

default_cfgs = generate_default_cfgs({"regnety_micro.none": _cfg()})


@register_model
def regnety_micro(pretrained: bool = False, **keys: Any) -> RegNet:
    shape = RegNetCfg(w0=8, wa=16.0, wm=1.5, group_size=8, depth=5, se_ratio=0.25)
    network: RegNet = build_model_with_cfg(
        RegNet,
        "regnety_micro",
        pretrained,
        model_cfg=shape,
        pretrained_filter_fn=_filter_fn,
        **keys,
    )
    return network
