"""Tests that need a GPU, over tiny runs; `pytest tests/gpu --device cpu` rehearses them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moco_det.data.scenes import ScenesPaths
from tests.pretrain.conftest import class_folders, tiny  # noqa: F401
from tests.standalone import tiny as tiny_detector


@pytest.fixture(scope="session")
def painted(tmp_path_factory: pytest.TempPathFactory) -> ScenesPaths:
    return tiny_detector.scenes(Path(tmp_path_factory.mktemp("painted")))


@pytest.fixture
def triton_runs(device: str) -> None:
    """Skips where Triton's kernels cannot run."""
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton runs on a CPU with TRITON_INTERPRET=1 alone")
