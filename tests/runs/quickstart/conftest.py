"""Painted scenes and a small budget for the tests of quickstart."""

from __future__ import annotations

import pytest

from moco_det.data.scenes import ScenesPaths, write_scenes
from moco_det.runs.quickstart.plan import Budget

BUDGET = Budget(
    arms=("random", "supervised", "moco"), seed=3, seeds=2, pretrain_steps=40, finetune_steps=20
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> ScenesPaths:
    folder = tmp_path_factory.mktemp("scenes") / "set"
    return write_scenes(folder, seed=1, unlabelled=40, train=12, test=4, size=64, progress=False)
