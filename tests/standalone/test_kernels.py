"""The kernels for GPUs, interpreted: their tests in tests/gpu on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "passed"), [("kernels", 15), ("grouped_norm", 23)])
def test_the_kernels_compute_what_torch_and_torchvision_do(name: str, passed: int) -> None:
    command = [sys.executable, "-m", "pytest", f"tests/gpu/test_{name}_gpu.py", "-q"]
    result = subprocess.run(
        [
            *command,
            "--device",
            "cpu",
            "-p",
            "no:randomly",
            "-p",
            "no:xdist",
            "-p",
            "no:cacheprovider",
        ],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert f"{passed} passed" in result.stdout, result.stdout[-3000:]
