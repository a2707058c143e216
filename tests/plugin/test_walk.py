"""Train, be killed, resume, evaluate: the walk of a night on a shared machine, on detectron2."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moco_det.results import read_rows

pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

REPO = Path(__file__).resolve().parents[2]
CONFIG = REPO / "configs" / "quick" / "R18_FPN.yaml"
TOOL = REPO / "tools" / "train_net.py"


def command(*options: str) -> list[str]:
    start = [sys.executable, str(TOOL), "--engine", "detectron2", "--config-file", str(CONFIG)]
    return [*start, *options]


def iterations_of(path: Path) -> list[int]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["iteration"] for row in rows if "total_loss" in row]


def test_a_killed_run_goes_on_ends_and_is_scored_again_to_the_same(
    tiny: Callable[..., list[str]], backbone_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    options = tiny(
        OUTPUT_DIR=str(output),
        MODEL__WEIGHTS=str(backbone_file),
        SOLVER__MAX_ITER="12",
        SOLVER__CHECKPOINT_PERIOD="3",
        SOLVER__STEPS="(9,)",
    )
    # it kills itself as a machine would, in the middle of a step after a checkpoint was written
    killer = (
        "import os, runpy, signal, sys\n"
        "from detectron2.engine import SimpleTrainer\n"
        "step = SimpleTrainer.run_step\n"
        "def die(self):\n"
        "    step(self)\n"
        "    if self.iter == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "SimpleTrainer.run_step = die\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    (tmp_path / "killer.py").write_text(killer)
    start = command(*options)
    first = subprocess.run([start[0], str(tmp_path / "killer.py"), *start[1:]], cwd=tmp_path)
    assert first.returncode == -signal.SIGKILL
    assert (output / "last_checkpoint").read_text() == "model_0000005.pth"
    assert not (output / "results.jsonl").exists() and not (output / "model_final.pth").exists()
    torn = output / "metrics.jsonl"
    torn.write_text(torn.read_text() + '{"iteration": 7, "total_lo')

    subprocess.run(command("--resume", *options), cwd=tmp_path, check=True)
    assert iterations_of(output / "metrics.jsonl") == list(range(12))
    (row,) = [row.data for row in read_rows([output]).rows]
    assert row["iterations"] == 12
    assert not any("resumed" in line for line in row["warnings"])
    log = (output / "log.txt").read_text()
    assert "Starting training from iteration 6" in log
    assert "100 of 100 backbone tensors loaded" in log

    predictions = json.loads((output / "predictions.json").read_text())
    scored = tmp_path / "scored"
    evaluate = command("--eval-only", *options, "OUTPUT_DIR", str(scored))
    weights = ["MODEL.WEIGHTS", str(output / "model_final.pth")]
    subprocess.run([*evaluate, *weights], cwd=tmp_path, check=True)
    assert json.loads((scored / "predictions.json").read_text()) == predictions
    assert os.listdir(scored) and not (scored / "results.jsonl").exists()
