"""DINOv3's ViT in six narrow blocks, to mutate tensor by tensor, under the names vit_micro_dinov3
and, with biases of queries and values, vit_micro_dinov3_qkvb.

Importing registers them with timm.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.eva import Eva, _cfg, checkpoint_filter_fn

__all__ = ["checkpoint_filter_fn"]  # how timm reads files of it

SIZE = {"input_size": (3, 64, 64), "num_classes": 0}
default_cfgs = generate_default_cfgs(
    {"vit_micro_dinov3.none": _cfg(**SIZE), "vit_micro_dinov3_qkvb.none": _cfg(**SIZE)}
)


def network(name: str, pretrained: bool, **keys: Any) -> Eva:
    shape: dict[str, Any] = {
        **{"img_size": 64, "dynamic_img_size": True, "embed_dim": 64, "depth": 6, "num_heads": 2},
        **{"init_values": 1e-5, "use_rot_pos_emb": True, "use_abs_pos_emb": False},
        **{"rope_type": "dinov3", "rope_temperature": 100, "rope_rotate_half": True},
        **{"num_reg_tokens": 2, "use_fc_norm": False, "qkv_bias": name.endswith("qkvb")},
    }
    made: Eva = build_model_with_cfg(
        Eva, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **{**shape, **keys}
    )
    return made


@register_model
def vit_micro_dinov3(pretrained: bool = False, **keys: Any) -> Eva:
    return network("vit_micro_dinov3", pretrained, **keys)


@register_model
def vit_micro_dinov3_qkvb(pretrained: bool = False, **keys: Any) -> Eva:
    return network("vit_micro_dinov3_qkvb", pretrained, **keys)
