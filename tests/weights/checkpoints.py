"""Constructed checkpoints: true ResNets with seeded, trained-looking weights."""

from __future__ import annotations

import argparse
import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor

from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.weights.architectures import backbone_tensors

PIXELS = {
    "format": "RGB",
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
    "stride_in_1x1": False,
}


def random_arrays(architecture: str, seed: int = 5) -> dict[str, np.ndarray]:
    """Trained-looking arrays under torchvision's names."""
    generator = np.random.default_rng(seed)
    arrays = {}
    for tensor in backbone_tensors(ARCHITECTURES[architecture]):
        noise = generator.standard_normal(tensor.shape, dtype=np.float32)
        if tensor.torchvision.endswith("running_var"):
            noise = np.abs(noise) + np.float32(0.5)
        elif noise.ndim == 4:
            sizes = generator.uniform(0.5, 1.5, (len(noise), 1, 1, 1)).astype(np.float32)
            noise *= sizes * np.float32(math.sqrt(1.1 / noise[0].size))
        elif tensor.torchvision.endswith("weight"):
            noise = np.float32(0.6) + np.float32(0.1) * noise
        arrays[tensor.torchvision] = noise
    return arrays


def in_detectron2_names(arrays: dict[str, np.ndarray], architecture: str) -> dict[str, np.ndarray]:
    tensors = backbone_tensors(ARCHITECTURES[architecture])
    return {t.detectron2: arrays[t.torchvision] for t in tensors}


def nothing_but(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


def trained_state(architecture: str, seed: int) -> OrderedDict[str, Tensor]:
    """torchvision's state dict, every tensor moved off its start and filters of unlike sizes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = torchvision.models.get_model(architecture)
    state: OrderedDict[str, Tensor] = OrderedDict()
    for name, meta in model.state_dict().items():
        noise = torch.randn(meta.shape, generator=generator) if meta.is_floating_point() else None
        if noise is None:
            state[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            state[name] = 0.5 + noise.abs()
        elif meta.dim() == 4:
            sizes = 0.5 + torch.rand(meta.shape[0], 1, 1, 1, generator=generator)
            state[name] = noise * sizes * (1.1 / meta[0].numel()) ** 0.5
        elif name.endswith("weight") and meta.dim() == 1:
            state[name] = 0.6 + 0.1 * noise
        else:
            state[name] = 0.1 * noise
    return state


def moco_layout(q: dict[str, Tensor], k: dict[str, Tensor]) -> dict[str, object]:
    """What main_moco.py saves, with the parser's Namespace that torch refuses to open."""
    table: OrderedDict[str, Tensor] = OrderedDict()
    for encoder, state in (("encoder_q", q), ("encoder_k", k)):
        for name, tensor in state.items():
            table[f"module.{encoder}.{name}"] = tensor
    table["module.queue"] = torch.zeros(128, 16)
    table["module.queue_ptr"] = torch.zeros(1, dtype=torch.long)
    return {
        "epoch": 200,
        "arch": "resnet18",
        "state_dict": table,
        "args": argparse.Namespace(lr=0.03, moco_k=65536),
    }
