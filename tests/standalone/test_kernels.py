"""The kernels for GPUs, interpreted: tests/gpu/test_kernels_gpu.py on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
def test_the_kernels_compute_what_torchvision_does() -> None:
    command = [sys.executable, "-m", "pytest", "tests/gpu/test_kernels_gpu.py", "-q"]
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
    assert result.returncode == 0 and "15 passed" in result.stdout, result.stdout[-3000:]
