"""A full disk is one error that names the file, and nothing half-written is left."""

from __future__ import annotations

import contextlib
import logging
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from moco_det.data.image import write_jpeg
from moco_det.foundation.atomic import LogFile, append_line, new_folder, write_text
from moco_det.foundation.checkpoints import save_checkpoint
from moco_det.foundation.errors import InputError
from moco_det.foundation.metrics_file import MetricsFile
from moco_det_tools.entry import run

LIMIT = 50


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond LIMIT bytes: the write that would fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _folder(path: Path) -> None:
    with new_folder(path) as partial:
        (partial / "any.txt").write_text("x" * 100, "utf-8")


def _log(path: Path) -> None:
    handler = LogFile(path)
    try:
        handler.handle(logging.makeLogRecord({"msg": "x" * 100_000}))
    finally:
        handler.close()


WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: write_text(path, "x" * 100),
    "checkpoint": lambda path: save_checkpoint({"a": torch.zeros(1000)}, path),
    "picture": lambda path: write_jpeg(path, np.zeros((9, 9, 3), np.uint8)),
    "folder": _folder,
    "line": lambda path: append_line(path, "x" * 100),
    "metrics": lambda path: MetricsFile(path, keep=bool).write({"iteration": 1, "x": "x" * 100}),
    "log": _log,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(
    name: str, tmp_path: Path
) -> None:
    with (
        full_disk(),
        pytest.raises(InputError, match="cannot write .*out.*: (File too large|No space left)"),
    ):
        WRITERS[name](tmp_path / "out")
    left = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    if name in ("line", "metrics"):
        assert left == {"out": 0}
    elif name != "log":
        assert left == {}


def test_lines_before_the_one_that_found_the_disk_full_stay(tmp_path: Path) -> None:
    append_line(tmp_path / "a", "first")
    with full_disk(), pytest.raises(InputError):
        append_line(tmp_path / "a", "x" * 100)
    append_line(tmp_path / "a", "last")
    assert (tmp_path / "a").read_text("utf-8") == "first\nlast\n"


def test_a_full_disk_under_another_librarys_writer_is_one_line_of_a_tool(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        (tmp_path / "a").write_bytes(b"x" * 100)
        return 0

    with full_disk():
        assert run(main) == 2
    assert capsys.readouterr().err.startswith("error: ")
