"""Where and under what name an output may be written, and what happens when it cannot."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moco_det.foundation.errors import InputError
from moco_det.weights.convert import convert
from tests.weights.checkpoints import nothing_but


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("b.onnx", None, "a backbone file ends with .pkl or .safetensors or .pth"),
        ("b", None, "ends with"),
        ("b.pkl", "torchvision", "a torchvision file ends with"),
        ("b.pth", "detectron2", "a detectron2 file ends with"),
        ("b.pkl", "onnx", "unknown target 'onnx'"),
    ],
)
def test_a_wrong_output_is_one_clear_line(
    moco_file: Path, tmp_path: Path, name: str, target: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        convert(moco_file, tmp_path / name, target_format=target)
    assert nothing_but(tmp_path)


def test_the_folder_of_the_output_is_made(moco_file: Path, tmp_path: Path) -> None:
    convert(moco_file, tmp_path / "new" / "weights" / "b.pkl")
    assert nothing_but(tmp_path / "new", "weights")
    assert nothing_but(tmp_path / "new" / "weights", "b.pkl")


def test_no_folder_is_left_behind_where_the_file_cannot_be_written(
    moco_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot make the folder .*Not a directory.*name another"):
        convert(moco_file, tmp_path / "file" / "weights" / "b.pkl")
    with pytest.raises(InputError, match="cannot write .*: File name too long"):
        convert(moco_file, tmp_path / "new" / "weights" / f"{'a' * 250}.pkl")
    assert nothing_but(tmp_path, "file")


def test_a_directory_as_output_is_refused(moco_file: Path, tmp_path: Path) -> None:
    (tmp_path / "b.pkl").mkdir()
    with pytest.raises(InputError, match="is a directory"):
        convert(moco_file, tmp_path / "b.pkl")
    assert nothing_but(tmp_path, "b.pkl")


def test_the_input_is_never_overwritten(tmp_path: Path, torchvision_file: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(torchvision_file.read_bytes())
    with pytest.raises(InputError, match="is the input itself"):
        convert(path, path)
    assert path.read_bytes() == torchvision_file.read_bytes()


def test_a_place_where_nothing_can_be_made_or_removed_is_one_clear_line(
    torchvision_file: Path, tmp_path: Path
) -> None:
    """A name that only the partial file's makes too long; a read-only disk answers alike."""
    with pytest.raises(InputError, match="cannot write .*: File name too long"):
        convert(torchvision_file, tmp_path / f"{'a' * 250}.pkl")
    assert nothing_but(tmp_path)


def test_another_file_of_the_outputs_name_is_kept_unless_told_otherwise(
    torchvision_file: Path, backbone_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "b.pkl"
    path.write_bytes(backbone_file.read_bytes())
    with pytest.raises(InputError, match="b.pkl is there already.*--overwrite"):
        convert(torchvision_file, path)
    assert path.read_bytes() == backbone_file.read_bytes() and nothing_but(tmp_path, "b.pkl")
    digest = convert(torchvision_file, path, overwrite=True).sha256
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    convert(torchvision_file, path)  # the same bytes once more: nothing is lost


def test_a_pipe_of_the_outputs_name_is_neither_waited_for_nor_replaced(
    torchvision_file: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "b.pkl")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is not a regular file"):
            convert(torchvision_file, tmp_path / "b.pkl", overwrite=overwrite)
    assert (tmp_path / "b.pkl").is_fifo() and nothing_but(tmp_path, "b.pkl")


def test_a_write_that_breaks_leaves_the_old_file(
    torchvision_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b.pkl").write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="cannot write .*b.pkl: No space left"):
        convert(torchvision_file, tmp_path / "b.pkl", overwrite=True)
    assert (tmp_path / "b.pkl").read_bytes() == b"old" and nothing_but(tmp_path, "b.pkl")


def test_a_file_that_reads_back_otherwise_never_gets_its_name(
    torchvision_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moco_det.weights.writing import write_pickle

    def wrong(file: Any, content: dict[str, Any]) -> None:
        model = dict(content["model"])
        model["res3.1.conv1.norm.bias"] = model["res3.1.conv1.norm.bias"] + np.float32(1)
        write_pickle(file, {**content, "model": model})

    monkeypatch.setattr(sys.modules[convert.__module__], "write_pickle", wrong)
    with pytest.raises(InputError, match="layer2.1.bn1.bias was written wrongly"):
        convert(torchvision_file, tmp_path / "b.pkl")
    assert nothing_but(tmp_path)
