"""What several test files of the engine need: painted scenes and a backbone file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moco_det.data.scenes import ScenesPaths
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.resnet.network import ResNet
from tests.golden.filling import values_of
from tests.standalone.tiny import scenes

INPUT = {
    "format": "RGB",
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
    "stride_in_1x1": False,
}


def backbone_arrays(architecture: str = "resnet18") -> dict[str, np.ndarray]:
    """A ResNet under detectron2's bare names, every tensor fixed by its name."""
    state = ResNet(ARCHITECTURES[architecture]).state_dict()
    return {
        name: values_of(name, tuple(tensor.shape)).numpy()
        for name, tensor in state.items()
        if tensor.is_floating_point()
    }


def write_backbone(path: Path, arrays: dict[str, np.ndarray], **beside: Any) -> Path:
    content = {"model": arrays, "__author__": "moco_det", "matching_heuristics": True, **beside}
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


@pytest.fixture(scope="session")
def painted(tmp_path_factory: pytest.TempPathFactory) -> ScenesPaths:
    return scenes(tmp_path_factory.mktemp("painted"))


@pytest.fixture(scope="session")
def backbone_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 as convert_weights writes it."""
    source = {"format": "moco-det/1", "method": "moco_v2", "arch": "resnet18", "sha256": "0" * 64}
    return write_backbone(
        tmp_path_factory.mktemp("weights") / "moco.pkl",
        backbone_arrays(),
        input=INPUT,
        source=source,
        verified={"max_abs_difference": 0.0, "per_stage": {}},
    )
