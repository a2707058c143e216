"""Every way to start two processes: one machine, two machines, torchrun; killed and resumed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import moco_det.standalone.train as training
from moco_det.data.scenes import ScenesPaths
from moco_det.foundation import launching
from moco_det.foundation.errors import ProcessDied
from moco_det.settings.engine import RunOptions
from moco_det.standalone.checkpoint import begun_by
from moco_det.standalone.loader import BatchStream
from moco_det_tools.entry import run
from moco_det_tools.train_net import main
from tests.standalone.test_distributed import free_url
from tests.standalone.test_run import final_state, lines_of
from tests.standalone.tiny import CONFIG, REPO, on_scenes, overrides
from tests.standalone.workers import run_until_killed

pytestmark = pytest.mark.slow
NORMS = {"MODEL.RESNETS.NORM": "SyncBN", "MODEL.FPN.NORM": "SyncBN"}


def words(paths: ScenesPaths, output: Path, *options: str) -> list[str]:
    """The command line of the tiny run, after the tool's name."""
    keys = {
        "DATASETS.TRAIN": repr((paths.train,)),
        "DATASETS.TEST": repr((paths.test,)),
        "OUTPUT_DIR": repr(str(output)),
    }
    start = ["--engine", "standalone", "--config-file", str(CONFIG), *options]
    return [*start, *overrides(NORMS | keys)]


def started(launcher: list[str], command: list[str]) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), *sys.path])}
    return subprocess.Popen(
        [sys.executable, *launcher, str(REPO / "tools" / "train_net.py"), *command],
        env=env | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What a process that ended well has printed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def whole(painted: ScenesPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps by ``--num-gpus 2`` that nobody stopped."""
    output = tmp_path_factory.mktemp("launch") / "whole"
    command = words(painted, output, "--num-gpus", "2")
    assert run(lambda: main(command)) == 0
    return output


def losses(folder: Path) -> list[float]:
    return [line["total_loss"] for line in lines_of(folder) if "total_loss" in line]


def assert_alike(found: Path, whole: Path) -> None:
    """The same run, but for rounding: the number of threads may be another."""
    assert len(losses(found)) == 4
    assert losses(found) == pytest.approx(losses(whole), rel=1e-2)
    assert losses(found)[0] == pytest.approx(losses(whole)[0], rel=1e-4)
    rows = (found / "results.jsonl").read_text().splitlines()
    assert len(rows) == 1 and json.loads(rows[0])["iterations"] == 4
    assert "2 process(es)" in (found / "log.txt").read_text()


@pytest.fixture(scope="module")
def killed(painted: ScenesPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run, killed in its last step; its checkpoint is of the second."""
    output = tmp_path_factory.mktemp("launch") / "killed"
    cfg = on_scenes(painted, output, NORMS)
    with pytest.raises(ProcessDied, match="killed by signal 9"):
        launching.launch(
            run_until_killed,
            (cfg, RunOptions("R18_FPN"), 3),
            launching.ProcessLayout(2),
            "cpu",
        )
    assert (output / "model_0000001.pth").exists() and not (output / "model_final.pth").exists()
    assert len(losses(output)) == 2  # the third step's are read after the fourth has been started
    return output


def test_two_processes_that_were_killed_and_resumed_equal_two_that_were_not(
    whole: Path, killed: Path, painted: ScenesPaths, tmp_path: Path
) -> None:
    output = shutil.copytree(killed, tmp_path / "killed")
    command = words(painted, output, "--resume", "--num-gpus", "2")
    assert run(lambda: main(command)) == 0
    assert lines_of(output) == lines_of(whole)
    one, two = final_state(whole), final_state(output)
    assert [n for n, t in one["model"].items() if not torch.equal(t, two["model"][n])] == []
    assert all(torch.equal(a, b) for a, b in zip(one["random"], two["random"], strict=True))
    same: list[Any] = [(p / "predictions.json").read_bytes() for p in (whole, output)]
    assert same[0] == same[1]


def test_one_process_goes_on_with_the_batches_of_two(
    whole: Path,
    killed: Path,
    painted: ScenesPaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    output = shutil.copytree(killed, tmp_path / "alone")
    command = words(painted, output, "--resume")
    assert run(lambda: main([*command, "SOLVER.REFERENCE_WORLD_SIZE", "2"])) == 2
    said = "begun by 2 process(es), for which SOLVER.REFERENCE_WORLD_SIZE 2"
    assert said in capfd.readouterr().err
    made, real = list[BatchStream](), training.training_loader

    def loader(records: Any, mapper: Any, stream: BatchStream, *, workers: int) -> Any:
        made.append(stream)
        return real(records, mapper, stream, workers=workers)

    monkeypatch.setattr(training, "training_loader", loader)
    assert run(lambda: main(command)) == 0
    assert (made[0].batch_size, made[0].start, made[0].world_size) == (2, 2, 1)
    assert {stream.streams for stream in made} == {2}
    assert losses(output)[:2] == losses(whole)[:2]
    assert losses(output)[2:] == pytest.approx(losses(whole)[2:], rel=0.05)  # of other regions
    assert "was written by 2 process(es) and is resumed by 1" in (output / "log.txt").read_text()
    assert begun_by(final_state(output)) == 2 and len(final_state(output)["random"]) == 1


def test_two_machines_of_one_process_do_the_same(
    whole: Path, painted: ScenesPaths, tmp_path: Path
) -> None:
    shared = ["--num-machines", "2", "--dist-url", free_url()]
    output = tmp_path / "machines"
    machines = [
        started([], words(painted, output, *shared, "--machine-rank", str(rank))) for rank in (0, 1)
    ]
    for machine in machines:
        finished(machine)
    assert_alike(output, whole)


def test_torchrun_does_the_same(whole: Path, painted: ScenesPaths, tmp_path: Path) -> None:
    output = tmp_path / "torchrun"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    finished(started(launcher, words(painted, output)))
    assert_alike(output, whole)
