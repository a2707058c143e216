"""Synthetic result rows: no engine, no images, numbers chosen by the test."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

CONFIG = """\
DATASETS: {{TRAIN: [toy_train], TEST: [toy_test]}}
INPUT: {{FORMAT: RGB}}
MODEL:
  PIXEL_MEAN: [123.675, 116.28, 103.53]
  PIXEL_STD: [58.395, 57.12, 57.375]
  RESNETS: {{DEPTH: 18, STRIDE_IN_1X1: false}}
  WEIGHTS: "{weights}"
OUTPUT_DIR: "out/{arm}_{seed}"
SEED: {seed}
SOLVER: {{BASE_LR: {lr}, MAX_ITER: {iterations}}}
"""

MakeRow = Callable[..., dict[str, Any]]


@pytest.fixture
def make_row() -> MakeRow:
    """A valid row of schema 1; `box` and `mask` are [AP, AP50, AP75] in percent."""

    def make(
        arm: str = "moco",
        seed: int = 0,
        box: Sequence[float | None] = (30.0, 50.0, 20.0),
        mask: Sequence[float | None] | None = None,
        *,
        iterations: int = 100,
        engine: str = "standalone",
        precision: str = "float32",
        fingerprint: str = "f" * 64,
        lr: float = 0.02,
        status: str = "finished",
        classes: Sequence[str] = ("cat", "dog"),
        per_class: dict[str, float | None] | None = None,
        **changes: Any,
    ) -> dict[str, Any]:
        weights = None if arm == "random" else f"{arm}.pkl"
        metrics: dict[str, Any] | None = {
            "bbox": {
                **dict(zip(("AP", "AP50", "AP75"), box, strict=True)),
                "per_class": per_class or {},
            }
        }
        if mask is not None and metrics is not None:
            metrics["segm"] = dict(zip(("AP", "AP50", "AP75"), mask, strict=True))
        row = {
            "schema": 1,
            "run": f"{arm}_seed{seed}",
            "status": status,
            "task": "box" if mask is None else "box+mask",
            "dataset": {
                "train": "toy_train",
                "test": "toy_test",
                "train_fingerprint": fingerprint,
                "test_fingerprint": fingerprint,
                "train_images": 20,
                "test_images": 10,
                "classes": list(classes),
            },
            "config_name": "toy",
            "config": CONFIG.format(
                weights=weights or "", arm=arm, seed=seed, lr=lr, iterations=iterations
            ),
            "init": {
                "name": arm,
                "weights": weights,
                "sha256": None if weights is None else (arm.encode().hex() + "0" * 64)[:64],
                "source": None,
                "verified": None,
            },
            "engine": {"name": engine, "version": "1", "torch": "2.6", "torchvision": "0.21"},
            "precision": precision,
            "seed": seed,
            "iterations": iterations,
            "batch": 2,
            "wall_seconds": 65.0,
            "hardware": {"device": "cpu", "cores": 2},
            "metrics": metrics if status == "finished" else None,
            "output_dir": f"runs/{arm}_seed{seed}",
            "command": f"tools/train_net.py SEED {seed}",
            "started": "2025-01-01T00:00:00Z",
            "warnings": [],
        }
        row.update(changes)
        return row

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[Sequence[dict[str, Any]]], Path]:
    """Write rows to a results.jsonl in the test's folder."""

    def write(rows: Sequence[dict[str, Any]]) -> Path:
        path = tmp_path / "results.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
