"""Small generated images and a config that trains on them in a second."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest


def write_images(
    folder: Path, count: int, *, seed: int = 0, shape: tuple[int, int] = (40, 48)
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        noise = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i:03d}.jpg"), cv2.GaussianBlur(noise, (0, 0), 2.0))


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images in each of two class folders."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "cat", 12, seed=1)
    write_images(root / "dog", 12, seed=2)
    return root


@pytest.fixture
def tiny(class_folders: Path, tmp_path: Path) -> list[str]:
    """KEY VALUE pairs of a run of four steps over the quick config."""
    pairs = {
        "DATA.PATH": class_folders,
        "OUTPUT_DIR": tmp_path / "run",
        "SOLVER.BATCH": 8,
        "SOLVER.MAX_ITER": 4,
        "ENCODER.ARCH": "resnet18_w0.25x",
        "ENCODER.BN_SPLITS": 2,
        "AUGMENT.SIZE": 32,
        "MOCO.K": 24,
        "ENCODER.DIM": 16,
        "DATA.WORKERS": 0,
        "LOG_EVERY": 2,
        "CHECKPOINT_EVERY": 100,
        "DEVICE": "cpu",
        "PRECISION": "float32",
    }
    return [str(part) for pair in pairs.items() for part in pair]
