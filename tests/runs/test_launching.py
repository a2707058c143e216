"""Several processes on one machine: where they meet, and what is said where they do not."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from moco_det.foundation import collectives
from moco_det.foundation.errors import InputError
from moco_det.foundation.launching import ProcessLayout, launch


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
