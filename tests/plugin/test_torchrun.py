"""detectron2's engine in processes that torchrun has started; its trainer itself needs GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")

import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm

from moco_det.plugin.engine import Detectron2Engine
from moco_det.results import read_rows
from moco_det.runs import run
from moco_det.settings.engine import RunOptions
from moco_det_tools.train_net import main
from tests.standalone.test_distributed import free_url

pytestmark = pytest.mark.detectron2
REPO = Path(__file__).resolve().parents[2]
CONFIG = REPO / "configs" / "quick" / "R18_FPN.yaml"


def worker(number: int, folder: str, per_node: int, port: str, words: list[str]) -> None:
    """The tool as torchrun starts it, up to where detectron2 builds and trains."""
    place = {"RANK": number, "WORLD_SIZE": 2, "LOCAL_RANK": number % per_node}
    place |= {"LOCAL_WORLD_SIZE": per_node, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}

    def not_checked(self: Detectron2Engine, cfg: CfgNode, total: int) -> None:
        assert total == 2

    def stub(cfg: CfgNode, options: RunOptions, engine: Detectron2Engine) -> None:
        ranks = comm.get_rank(), comm.get_local_rank(), comm.get_local_size()
        found = {"ranks": comm.all_gather(ranks), "backend": dist.get_backend()}
        torch.save(found, f"{folder}/{number}.pt")

    run.run = stub  # type: ignore[assignment]
    Detectron2Engine.check_processes = not_checked  # type: ignore[method-assign]
    assert main(words) == 0 and not dist.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize("per_node", [2, 1], ids=["one node", "two nodes"])
def test_detectron2_knows_its_rank_among_all_and_on_its_machine(
    per_node: int, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    words = ["--engine", "detectron2", "--config-file", str(CONFIG), *tiny()]
    port = free_url().rpartition(":")[2]
    torch.multiprocessing.spawn(worker, (str(tmp_path), per_node, port, words), nprocs=2)
    expected = [(rank, rank % per_node, per_node) for rank in (0, 1)]
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found == {"ranks": expected, "backend": "gloo"}


@pytest.mark.slow
def test_torchrun_with_one_process_trains_and_scores(
    tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    changes = tiny(OUTPUT_DIR=str(tmp_path / "run"), SOLVER__MAX_ITER="1", SOLVER__STEPS="()")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    tool = [str(REPO / "tools" / "train_net.py"), "--engine", "detectron2"]
    done = subprocess.run(
        [sys.executable, *launcher, *tool, "--config-file", str(CONFIG), *changes],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = (row.data for row in read_rows([tmp_path / "run"]).rows)
    assert row["engine"]["name"] == "detectron2" and row["iterations"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "on GPUs only: use --num-gpus 1 (torchrun: --nproc-per-node 1)"),
        (("--num-gpus", "2"), "take out --num-gpus"),
    ],
)
def test_what_torchrun_cannot_start_is_one_line(
    options: tuple[str, ...],
    message: str,
    train_net: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    output = tmp_path / "run"
    assert train_net("--engine", "detectron2", *options, OUTPUT_DIR=str(output)) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert message in line and not output.exists()
