"""Small checkpoint files that many tests read."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.weights.checkpoints import moco_layout, trained_state


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
            "settings": "5e77" * 16,
            "versions": {"torch": str(torch.__version__)},
            "input": {"format": "RGB", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        },
        path,
    )
    return path


@pytest.fixture(scope="session")
def backbone_file(weights_dir: Path, moco_file: Path) -> Path:
    from moco_det.weights.convert import convert

    path = weights_dir / "backbone.pkl"
    convert(moco_file, path)
    return path
