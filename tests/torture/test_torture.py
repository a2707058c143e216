"""The short forms of the two harnesses; `make torture` runs the long ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
# a pre-training and a fine-tuning of each engine
KILLED = {"pretrain": "8:9", "standalone": "21:22", "detectron2": "12:13"}


def run(module: str, seeds: str, work: Path) -> subprocess.CompletedProcess[str]:
    """A harness, in a process that has no threads of pytest's."""
    return subprocess.run(
        [sys.executable, "-m", f"tests.torture.{module}", "--seeds", seeds, "--work", str(work)],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_a_killed_run_ends_where_it_would_have_ended(name: str, tmp_path: Path) -> None:
    if name == "detectron2":
        pytest.importorskip("detectron2")
    ended = run("kills", KILLED[name], tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    assert "| all | 1 |" in ended.stdout


@pytest.mark.slow
def test_hostile_input_of_every_kind_is_one_line(tmp_path: Path) -> None:
    ended = run("hostile", "100000:100017", tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    assert "| all | 17 |" in ended.stdout
