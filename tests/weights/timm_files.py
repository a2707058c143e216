"""Checkpoints of networks of timm: true ones, randomly initialised, and others' names for them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

import tests.weights.small_dinov3  # noqa: F401
import tests.weights.small_regnet  # noqa: F401
import tests.weights.small_swin  # noqa: F401

# One per family; the small ones are mutated tensor by tensor.
FAMILIES = ("convnext_atto", "swin_micro", "regnety_002", "test_efficientnet", "test_vit")
SMALL = (
    *("test_convnext", "swin_micro", "regnety_micro", "test_efficientnet", "test_vit"),
    "vit_micro_dinov3_qkvb",
)


def trained(name: str, seed: int = 7) -> dict[str, Tensor]:
    """timm's state dict, every tensor moved off its start."""
    torch.manual_seed(seed)
    state = timm.create_model(name).state_dict()
    return {
        key: t + 0.05 * torch.rand_like(t) if t.is_floating_point() else t + 40
        for key, t in state.items()
    }


def save(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


def describe(folder: Path, name: str, **more: Any) -> None:
    """config.json as the hub has it beside a file."""
    cfg = timm.get_pretrained_cfg(name).to_dict()
    text = {"architecture": name.partition(".")[0], "num_classes": 1000, **more}
    (folder / "config.json").write_text(json.dumps({**text, "pretrained_cfg": {**cfg}}))


def authors_convnext(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of facebookresearch/ConvNeXt, whose pointwise layers are linear."""
    renamed = {}
    for key, tensor in state.items():
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key)
        key = key.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        key = key.replace("head.norm.", "norm.").replace("head.fc.", "head.")
        flat = "pwconv" in key and tensor.ndim == 4
        renamed[key] = tensor.flatten(1) if flat else tensor
    return renamed


def authors_dinov3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As Meta publishes DINOv3's ConvNeXts: the last norm under a second name, no classifier."""
    renamed = authors_convnext(state)
    second = {f"norms.3.{part}": renamed[f"norm.{part}"] for part in ("weight", "bias")}
    return {k: t for k, t in renamed.items() if not k.startswith("head.")} | second


def authors_dinov3_vit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As Meta publishes DINOv3's ViTs: biases of all three in one tensor, what only trains."""
    renamed: dict[str, Tensor] = {
        "mask_token": torch.ones(1, 64),
        "rope_embed.periods": torch.ones(4),
    }
    for key, tensor in state.items():
        if key.endswith("v_bias") or key.startswith("head."):
            continue
        if key.endswith("q_bias"):
            values = state[key.replace("q_bias", "v_bias")]
            whole = torch.cat([tensor, torch.zeros_like(tensor), values])
            key, tensor = key.replace("q_bias", "qkv.bias"), whole
            renamed[f"{key}_mask"] = torch.ones_like(whole)
        key = key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        renamed[key.replace("reg_token", "storage_tokens")] = tensor
    return renamed


def authors_swin(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of microsoft/Swin-Transformer: a stage ends where timm's next one begins."""
    renamed = {}
    for key, tensor in state.items():
        found = re.match(r"layers\.(\d)\.downsample\.(.+)", key)
        key = f"layers.{int(found[1]) - 1}.downsample.{found[2]}" if found else key
        renamed[key.replace("head.fc.", "head.")] = tensor
    renamed["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    renamed["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16).long()
    return renamed
