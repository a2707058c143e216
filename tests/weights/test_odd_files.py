"""Files that are not what they seem, and files that change."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moco_det.foundation.errors import InputError
from moco_det.weights.pickled_names import Stub
from moco_det.weights.reading import confirm, read_checkpoint


def refused(path: Path | str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_odd_names_and_links(tmp_path: Path) -> None:
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    refused(tmp_path / "loop.pth", "cannot be read: Too many levels")
    (tmp_path / "nowhere.pth").symlink_to(tmp_path / "gone")
    refused(tmp_path / "nowhere.pth", "does not exist")
    refused(tmp_path / ("a" * 5000), "cannot be read: File name too long")
    refused("a\0b.pth", "cannot be read: embedded null byte")
    refused("/dev/null", "is not a regular file")
    refused("/dev/zero", "is not a regular file")
    refused(tmp_path / "x.pth" / "y.pth", "does not exist|cannot be read")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.pth").symlink_to(tmp_path / "folder")
    refused(tmp_path / "link.pth", "is a directory")


def test_a_pipe_in_another_folder_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "link.pth").symlink_to(tmp_path / "pipe.pth")
    refused(tmp_path / "link.pth", "is not a regular file")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_an_unreadable_file_and_folder_are_named(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x.pth"
    path.parent.mkdir()
    path.write_bytes(b"\x80\x02}.")
    code = (
        "import os, sys; from moco_det.weights.reading import read_checkpoint as read\n"
        "from moco_det.foundation.errors import InputError\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: read(sys.argv[1])\n"
        "except InputError as error: print(error)"
    )
    for folder in [tmp_path, *tmp_path.parents][:3]:
        folder.chmod(0o755)
    for closed, mode in ((path, 0o600), (path.parent, 0o700)):
        closed.chmod(mode)
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        )
        assert done.stdout == f"{path} cannot be read: Permission denied\n"
        closed.chmod(0o755)


def test_old_and_foreign_archives_are_named(tmp_path: Path) -> None:
    import tarfile

    path = tmp_path / "x.pth.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    refused(path, "is a tar archive: unpack it .*torch 0.1")
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 600)
    refused(tmp_path / "x.h5", "HDF5")


def test_a_whole_model_and_pickled_tensors_get_their_cure(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "whole torch.nn.modules.linear.Linear object, .*state_dict")
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "whole torch.nn.modules.linear.Linear object, .*state_dict")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"conv1.weight": torch.zeros(2)}))
    refused(tmp_path / "x.pkl", "pickled without torch.save")


def test_control_characters_never_reach_the_screen(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"\x1b[2J\n": 1, "\udce4": 2}))
    with pytest.raises(InputError) as caught:
        read_checkpoint(tmp_path / "x.pkl")
    assert str(caught.value).isprintable()


def test_a_file_that_changes_in_place_is_noticed(tmp_path: Path, torchvision_file: Path) -> None:
    """Same size, same time of modification: only the bytes and the inode's time differ."""
    path = tmp_path / "x.pth"
    path.write_bytes(torchvision_file.read_bytes())
    source = read_checkpoint(path)
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(before.st_size // 2)
        file.write(b"\1\2\3\4")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match="changed while it was read"):
        confirm(source.contents)


def test_a_file_that_is_replaced_is_noticed(tmp_path: Path, torchvision_file: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(torchvision_file.read_bytes())
    source = read_checkpoint(path)
    (tmp_path / "y.pth").write_bytes(torchvision_file.read_bytes())
    os.replace(tmp_path / "y.pth", path)
    with pytest.raises(InputError, match="changed while it was read"):
        source.tensors["conv1.weight"].read()
    path.unlink()
    with pytest.raises(InputError, match="changed while it was read"):
        source.tensors["conv1.weight"].read()


def test_records_of_another_hand_are_not_believed(tmp_path: Path, backbone_file: Path) -> None:
    with open(backbone_file, "rb") as file:
        content = pickle.load(file)
    odd: list[dict[str, Any]] = [
        {"source": {"format": "x\x1b[2J", "arch": "y", "sha256": "z"}},
        {"source": {"format": "x", "arch": 2**70, "sha256": ["z"]}},
        {"source": "text", "verified": [1]},
        {"verified": {"max_abs_difference": float("nan"), "per_stage": {}}},
    ]
    for change in odd:
        path = tmp_path / "x.pkl"
        path.write_bytes(pickle.dumps({**content, **change}))
        source = read_checkpoint(path)
        assert (source.origin is None) == ("source" in change)
        assert (source.proven is None) == ("verified" in change)
    for pixels in ({"format": "RGB", "mean": [2**5000] * 3, "std": [1] * 3}, 5, "x", {}):
        path.write_bytes(pickle.dumps({**content, "input": pixels}))
        refused(path, "input record is damaged|absurdly long number")


def test_stubs_keep_nothing_of_what_they_stand_for() -> None:
    assert Stub("a") == Stub("a") and not hasattr(Stub("a"), "__dict__")
