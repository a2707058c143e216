"""Constructed checkpoints: a small true ResNet with seeded, trained-looking weights."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor


def trained_state(architecture: str, seed: int) -> OrderedDict[str, Tensor]:
    """torchvision's state dict with convolutions and every BN tensor moved off their start."""
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
            state[name] = noise * (1.2 / meta[0].numel()) ** 0.5
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


@pytest.fixture(scope="session")
def query() -> OrderedDict[str, Tensor]:
    return trained_state("resnet18", seed=1)


@pytest.fixture(scope="session")
def key() -> OrderedDict[str, Tensor]:
    return trained_state("resnet18", seed=2)


@pytest.fixture(scope="session")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="session")
def torchvision_file(weights_dir: Path, query: OrderedDict[str, Tensor]) -> Path:
    path = weights_dir / "resnet18.pth"
    torch.save(query, path)
    return path


@pytest.fixture(scope="session")
def moco_file(
    weights_dir: Path, query: OrderedDict[str, Tensor], key: OrderedDict[str, Tensor]
) -> Path:
    path = weights_dir / "checkpoint_0199.pth.tar"
    torch.save(moco_layout(query, key), path)
    return path


@pytest.fixture(scope="session")
def own_file(weights_dir: Path, query: OrderedDict[str, Tensor]) -> Path:
    """The project's own checkpoint.pth."""
    path = weights_dir / "checkpoint.pth"
    encoder = OrderedDict((n, t) for n, t in query.items() if not n.startswith("fc."))
    torch.save(
        {
            "format": "moco-det/1",
            "method": "moco_v2",
            "arch": "resnet18",
            "encoder": encoder,
            "head": {"0.weight": torch.zeros(4, 4)},
            "state": {"queue": torch.zeros(4, 8), "progress": {"step": 3}},
            "config": {"K": 8},
            "versions": {"torch": str(torch.__version__)},
            "input": {"format": "RGB", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        },
        path,
    )
    return path


@pytest.fixture(scope="session")
def backbone_file(weights_dir: Path, moco_file: Path) -> Path:
    from moco_det.weights import convert

    path = weights_dir / "backbone.pkl"
    convert(moco_file, path)
    return path
