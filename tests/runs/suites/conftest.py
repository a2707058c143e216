"""A matrix of tiny runs whose trainer is a few lines of python instead of an engine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moco_det.runs.suites.matrix import Run, SuiteArm, build_matrix
from moco_det.runs.suites.suite import SuiteSetting

# Writes a finished row, or fails as the arm's name says; its pid lies in the run's folder.
TRAINER = """
import json, os, signal, sys, time
from pathlib import Path
from moco_det.foundation.stopping import asked, deferred
from moco_det.results import append_row

words = sys.argv[1:]
def after(name): return words[words.index(name) + 1]
arm, results = after("--init-name"), Path(after("--results"))
folder = Path(eval(after("OUTPUT_DIR")))
seed = int(after("SEED"))
folder.mkdir(parents=True, exist_ok=True)
with (folder / "starts.txt").open("a") as file:
    file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "none") + "\\n")
if arm == "broken":
    print("step 1\\rstep 2")
    print("error: MODEL.WEIGHTS is nowhere: make it first", file=sys.stderr)
    raise SystemExit(2)
if arm == "crash":
    os.kill(os.getpid(), signal.SIGABRT)
if arm == "stopped" and seed:
    os.kill(os.getpid(), signal.SIGKILL)
if arm == "stopped":
    raise SystemExit(128 + signal.SIGTERM)
if arm == "silent":
    raise SystemExit(0)
if arm == "slow":
    with deferred():
        (folder / "waiting").write_text(str(os.getpid()))
        while not asked():
            time.sleep(0.01)
        (folder / "model_0000001.pth").write_text(signal.Signals(asked()).name)
        raise SystemExit(128 + asked())
append_row(results, {
    "schema": 2, "run": folder.name, "status": "finished", "task": "box",
    "dataset": {"train": "a", "test": "b", "train_fingerprint": "f", "test_fingerprint": "f",
                "train_images": 2, "test_images": 1, "classes": ["cat"]},
    "config_name": "tiny", "config": "SEED: 0", "init": {"name": arm, "weights": None,
    "sha256": None, "source": None, "verified": None},
    "engine": {"name": "standalone", "version": "1", "torch": "2", "torchvision": "0"},
    "precision": "float32", "seed": seed, "iterations": 10, "batch": 2, "wall_seconds": 20.0,
    "hardware": {"device": "cpu", "cores": 2},
    "metrics": {"bbox": {"AP": 10.0 + seed, "AP50": 20.0, "AP75": 5.0}},
    "output_dir": str(folder.relative_to(results.parent)), "command": "train_net.py",
    "started": "2025-01-01T00:00:00+00:00", "warnings": [],
})
"""


@pytest.fixture
def trainer(tmp_path: Path) -> list[str]:
    """The command of a trainer that takes no time."""
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER, encoding="utf-8")
    return [sys.executable, str(script)]


MakeRuns = Callable[..., list[Run]]


@pytest.fixture
def make_runs() -> MakeRuns:
    """Runs of arms by name, without weights files, in one setting of 10 iterations."""

    def make(*names: str, seeds: int = 1, settings: tuple[str, ...] = ("tiny",)) -> list[Run]:
        made = [
            SuiteSetting(
                name,
                {
                    "SOLVER.MAX_ITER": 10,
                    "SOLVER.IMS_PER_BATCH": 2,
                    "DATASETS.TRAIN": ["a"],
                    "DATASETS.TEST": ["b"],
                    "X": name,
                },
            )
            for name in settings
        ]
        arms = [SuiteArm(name, None, None, {}) for name in names]
        return build_matrix(made, arms, range(seeds), engine="standalone")

    return make
