"""Several processes on one machine: where they meet, and what is said where they do not."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from moco_det.foundation import collectives, stopping
from moco_det.foundation.errors import InputError, ProcessDied
from moco_det.foundation.launching import ProcessLayout, _process_group, launch
from moco_det.foundation.ranks import Rank, run_ranks


def start_another(folder: Path, others: int) -> None:
    """Where all have met and the main process has started another run beside this one, a file."""
    total = torch.ones(1)
    torch.distributed.all_reduce(total)
    if collectives.is_main():
        if others:
            launch(start_another, (folder, others - 1), ProcessLayout(2), "cpu")
        (folder / str(others)).write_text(str(int(total)))
    torch.distributed.barrier()


def test_a_second_run_of_a_machine_meets_at_a_port_of_its_own(tmp_path: Path) -> None:
    launch(start_another, (tmp_path, 1), ProcessLayout(2), "cpu")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"0": "2", "1": "2"}


def test_a_port_in_use_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        layout = ProcessLayout(2, url=f"tcp://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(InputError, match="EADDRINUSE.*free port .*by --dist-url") as caught:
            launch(start_another, (tmp_path, 0), layout, "cpu")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def meet_and_end(how: str) -> None:
    """The second process ends in the middle of a run; the first waits for it in a collective."""
    total = torch.ones(1)
    torch.distributed.all_reduce(total)
    if collectives.rank() == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("a programming\nerror")
    torch.distributed.all_reduce(total)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("killed", "killed by signal 9 (most often memory has run out)"),
        ("raises", "ValueError: a programming error; its traceback stands above"),
    ],
)
def test_a_process_that_dies_is_one_line_with_its_last_words_and_ends_the_others(
    how: str, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ProcessDied) as caught:
        launch(meet_and_end, (how,), ProcessLayout(2), "cpu")
    assert str(caught.value) == f"process 2 of 2 (rank 1 of 2) died: {why}"
    assert multiprocessing.active_children() == []
    # a lost connection is nothing to trace back
    assert capfd.readouterr().err.count("Traceback") == (how == "raises")


def end_by_a_signal(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_death_of_the_last_process_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_too_early(rank: Rank) -> None:
        look(rank)
        rank.process.join()

    look = Rank.look
    monkeypatch.setattr(Rank, "look", look_too_early)
    with pytest.raises(ProcessDied, match="killed by signal 9"):
        run_ranks(end_by_a_signal, (), processes=1, first=0, total=1)


def report_threads(folder: Path, stopped: bool) -> None:
    """Train a parallel model in a group of one and write down the threads that outlive it."""

    def train() -> None:
        model = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
        model.__dict__["trainer"] = [model]  # a cycle
        model(torch.ones(1, 2)).sum().backward()
        if stopped:
            raise stopping.Stopped(signal.SIGTERM)

    def threads() -> list[str]:
        return sorted(f.read_text().strip() for f in Path("/proc/self/task").glob("*/comm"))

    before = threads()
    with (
        suppress(stopping.Stopped),
        _process_group("cpu", 0, 0, 1, init_method=f"file://{folder}/meet"),
    ):
        assert threads() != before
        train()
    (folder / "threads").write_text(f"{before}\n{threads()}")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("stopped", [False, True])
def test_the_threads_of_a_group_end_with_it(stopped: bool, tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=report_threads, args=(tmp_path, stopped)
    )
    process.start()
    process.join()
    before, after = (tmp_path / "threads").read_text().splitlines()
    assert after == before


def wait_for_a_stop(rank: int, folder: Path) -> None:
    """A loop's part of a stop: its signals are written down, and raised at a step's end."""
    with stopping.deferred():
        (folder / f"{rank}.waits").touch()
        while not stopping.asked():
            signal.sigtimedwait([], 0.05)
        (folder / f"{rank}.saved").write_text(signal.Signals(stopping.asked()).name)
        raise stopping.Stopped(stopping.asked())


def wait_until_both_wait(folder: Path) -> None:
    while len(list(folder.glob("*.waits"))) < 2:
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("asked", "seen"), [(signal.SIGUSR1, "SIGUSR1"), (signal.SIGINT, "SIGTERM")]
)
def test_a_signal_to_the_launcher_is_passed_on_and_is_what_stopped_the_run(
    asked: signal.Signals, seen: str, tmp_path: Path
) -> None:
    def ask() -> None:
        wait_until_both_wait(tmp_path)
        os.kill(os.getpid(), asked)

    thread = threading.Thread(target=ask)
    thread.start()
    with pytest.raises(stopping.Stopped) as caught:
        run_ranks(wait_for_a_stop, (tmp_path,), processes=2, first=0, total=2)
    thread.join()
    assert caught.value.number == asked
    assert [f.read_text() for f in tmp_path.glob("*.saved")] == [seen, seen]


def test_the_ranks_of_a_launcher_that_is_killed_save_and_end(tmp_path: Path) -> None:
    launcher = multiprocessing.get_context("spawn").Process(
        target=run_ranks,
        args=(wait_for_a_stop, (tmp_path,)),
        kwargs={"processes": 2, "first": 0, "total": 2},
    )
    launcher.start()
    wait_until_both_wait(tmp_path)
    launcher.kill()
    launcher.join()
    while [f.read_text() for f in tmp_path.glob("*.saved")] != ["SIGTERM", "SIGTERM"]:
        time.sleep(0.05)
