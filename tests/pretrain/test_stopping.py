"""A pre-training that is told to stop saves, says so by its exit code, and goes on exactly."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
from pathlib import Path
from typing import IO, Any, cast

import pytest
import torch
from torch.utils.data import DataLoader

from moco_det.foundation import checkpoints as foundation
from moco_det.foundation import stopping
from moco_det.foundation.errors import InputError
from moco_det.foundation.folders import claimed
from pretrain import loop, train
from pretrain.config import load_config
from pretrain.encoders import ARCHITECTURES
from pretrain.probe.knn import KnnMonitor
from tests.pretrain.small_trunk import SmallTrunk
from tests.pretrain.test_resume import QUICK, assert_same_run
from tests.standalone.test_distributed import free_url

entry = pytest.importorskip("moco_det_tools.entry")
tool = pytest.importorskip("moco_det_tools.pretrain")
SMALL = ["ENCODER.ARCH", "resnet34", "LOG_EVERY", "3"]


@pytest.fixture(autouse=True)
def small_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "resnet34", SmallTrunk)


def main(pairs: list[str], output: Path, *options: str) -> int:
    """The exit code of the tool."""
    words = ["--config-file", str(QUICK), *options, *pairs, *SMALL, "OUTPUT_DIR", str(output)]
    code: int = entry.run(lambda: tool.main(words))
    return code


def send_in_step(monkeypatch: pytest.MonkeyPatch, number: int, step: int) -> None:
    """This process gets the signal in the middle of a step, counted from 1."""
    real = loop.Loop._step

    def stopped(self: loop.Loop, raw: Any) -> None:
        if self.iteration == step - 1:
            os.kill(os.getpid(), number)
        real(self, raw)

    monkeypatch.setattr(loop.Loop, "_step", stopped)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)]
)
def test_a_signal_saves_the_step_and_the_run_goes_on_exactly(
    number: int,
    code: int,
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    handlers = [signal.getsignal(one) for one in stopping.SIGNALS]
    assert main(tiny, tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        send_in_step(patch, number, 2)
        assert main(tiny, tmp_path / "parts") == code
    saved = tmp_path / "parts" / "checkpoint_00000002.pth"
    assert [p.name for p in saved.parent.glob("*.pth")] == [saved.name]  # no period's
    assert f"--resume goes on from {saved}" in (saved.parent / "log.txt").read_text()
    assert capsys.readouterr().err.endswith(f"stopped by {signal.Signals(number).name}\n")
    assert main(tiny, tmp_path / "parts", "--resume") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert [signal.getsignal(one) for one in stopping.SIGNALS] == handlers


def test_a_run_in_its_last_step_ends_as_if_nobody_had_asked(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_in_step(monkeypatch, signal.SIGTERM, 4)
    assert main(tiny, tmp_path / "run") == 0
    assert [p.name for p in (tmp_path / "run").glob("*.pth")] == ["checkpoint.pth"]


@pytest.mark.parametrize(("measure", "step"), [(1, 0), (2, 3), (3, 4)])
def test_a_measure_of_neighbours_is_given_up_and_taken_after_the_resume(
    measure: int,
    step: int,
    tiny: list[str],
    tmp_path: Path,
    class_folders: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the first step, after an epoch of three, and after the last step."""
    knn = ["KNN.TRAIN", str(class_folders), "KNN.SIZE", "32", "KNN.EVERY", "1"]
    assert main([*tiny, *knn], tmp_path / "whole") == 0
    real, calls = KnnMonitor._features, list[int]()

    def stopped(self: KnnMonitor, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == measure:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(KnnMonitor, "_features", stopped)
        assert main([*tiny, *knn], tmp_path / "parts") == 143
    assert (tmp_path / "parts" / f"checkpoint_{step:08d}.pth").exists()
    assert main([*tiny, *knn], tmp_path / "parts", "--resume") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_second_interrupt_ends_a_write_at_once_and_leaves_nothing_torn(
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = foundation.replacing

    class Interrupted:
        def __init__(self, file: Any) -> None:
            self.file, self.flush, self.fileno = file, file.flush, file.fileno

        def write(self, part: bytes) -> int:
            if self.file.tell() > 20_000:
                os.kill(os.getpid(), signal.SIGINT)
            return int(self.file.write(part))

    def save(content: Any, path: Path) -> None:
        with real(path) as file:
            torch.save(content, cast(IO[bytes], Interrupted(file)))

    with monkeypatch.context() as patch:
        send_in_step(patch, signal.SIGINT, 3)
        patch.setattr(loop, "save_checkpoint", save)
        assert main(tiny, tmp_path / "run") == 130
    left = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert [n for n in left if "pth" in n or "partial" in n] == []
    assert "Traceback" not in capsys.readouterr().err
    assert main(tiny, tmp_path / "run", "--resume") == 0


def test_a_folder_has_one_owner_who_removes_what_killed_ones_left(
    tiny: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    cfg = load_config(QUICK, [*tiny, *SMALL, "OUTPUT_DIR", str(output)])
    with claimed(output):
        for resume in (False, True):
            with pytest.raises(InputError, match="another run is writing into .*run"):
                train.train(cfg, resume=resume)
        assert [p.name for p in output.iterdir()] == ["log.txt"]
    assert not output.exists()  # it was new, and nothing was written into it
    output.mkdir()
    (output / ".checkpoint_00000002.pth.77.partial").write_bytes(b"torn")
    train.train(cfg)
    assert not list(output.glob(".*"))


def test_workers_outlive_a_signal_and_do_not_outlive_a_killed_run() -> None:
    open_end, held = os.pipe()

    def run() -> None:
        loader: DataLoader[bytes] = DataLoader(
            [bytes(100_000)] * 9,  # type: ignore[arg-type]  # more than a pipe takes
            batch_size=None,
            num_workers=1,
            worker_init_fn=stopping.ignore_in_worker,
        )
        batches = iter(loader)
        next(batches)
        (worker,) = multiprocessing.active_children()
        for name in ("-TERM", "-USR1", "-INT"):  # not by us, whose SIGTERM it obeys
            subprocess.run(["kill", name, str(worker.pid)], check=True)
        assert [len(next(batches)) for _ in range(4)] == [100_000] * 4
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    os.close(held)
    assert os.read(open_end, 1) == b""  # the last that held the other end has gone
    process.join()
    assert process.exitcode == -signal.SIGKILL


def worker(rank: int, runs: list[tuple[str, int, list[str]]], folder: str) -> None:
    """The exit codes of some runs as one of torchrun's two processes."""
    torch.set_num_threads(1)
    ARCHITECTURES["resnet34"] = SmallTrunk
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({k: str(v) for k, v in place.items()}, MASTER_ADDR="127.0.0.1")
    codes = []
    for port, step, words in runs:
        os.environ["MASTER_PORT"] = port
        with pytest.MonkeyPatch.context() as patch:
            if rank == 1 and step:
                send_in_step(patch, signal.SIGTERM, step)
            codes.append(main(words, Path(folder, words.pop())))
    Path(folder, f"{rank}.json").write_text(json.dumps(codes))


@pytest.mark.slow
def test_two_processes_of_which_one_is_told_stop_after_the_same_step(
    tiny: list[str], tmp_path: Path
) -> None:
    runs = [(0, [*tiny, "whole"]), (2, [*tiny, "parts"]), (0, ["--resume", *tiny, "parts"])]
    given = [(free_url().rpartition(":")[2], *one) for one in runs]
    torch.multiprocessing.spawn(worker, args=(given, str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [0, 143, 0]
    assert (tmp_path / "parts" / "checkpoint_00000002.pth").exists()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
