"""tools/convert_weights.py: what it prints, and exit code 2 with one line for bad input."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from moco_det.foundation.errors import InputError
from moco_det_tools.convert_weights import main

TOOL = Path(__file__).resolve().parents[2] / "tools" / "convert_weights.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_converting_prints_the_proof(
    moco_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(moco_file), str(tmp_path / "b.pkl"), "--encoder", "key"]) == 0
    text = capsys.readouterr().out
    assert "100 of 100 backbone tensors" in text and "encoder       key" in text
    assert (tmp_path / "b.pkl").is_file()


def test_a_file_in_the_way_is_replaced_by_overwrite_alone(
    moco_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b.pkl").write_bytes(b"mine")
    with pytest.raises(InputError, match="--overwrite"):
        main([str(moco_file), str(tmp_path / "b.pkl")])
    assert (tmp_path / "b.pkl").read_bytes() == b"mine" and capsys.readouterr().out == ""
    assert main([str(moco_file), str(tmp_path / "b.pkl"), "--overwrite"]) == 0
    assert (tmp_path / "b.pkl").stat().st_size > 1000


def test_inspect_shows_and_writes_nothing(
    moco_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(moco_file), "--inspect"]) == 0
    text = capsys.readouterr().out
    assert "facebookresearch/moco" in text and "11,176,512" in text
    assert list(tmp_path.iterdir()) == []


def test_inspect_speaks_json(moco_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(moco_file), "--inspect", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["format"] == "facebookresearch/moco" and facts["architecture"] == "resnet18"
    assert facts["encoders"] == ["query", "key"] and facts["input"]["format"] == "RGB"
    assert facts["backbone_tensors"] == 100 and facts["parameters"] == 11_176_512
    assert facts["finite"] is True and facts["random_looking"] is False
    assert facts["foreign_objects"] == ["argparse.Namespace"]


def test_a_malicious_pickle_ends_with_code_2_and_runs_nothing(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> object:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": Trap()}))
    done = run(tmp_path / "x.pkl", tmp_path / "b.pkl")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert "would run" in done.stderr and "nothing was run" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.pkl"]


def test_a_missing_input_ends_with_code_2_and_one_line(tmp_path: Path) -> None:
    done = run(tmp_path / "x.pth", tmp_path / "b.pkl")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {tmp_path / 'x.pth'} does not exist: check the name of the weights file\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.pth"], "no OUTPUT named"),
        (["x.pth", "b.pkl", "--json"], "--json belongs to --inspect"),
        (["x.pth", "b.pkl", "--inspect"], "--inspect writes nothing"),
    ],
)
def test_contradictory_options_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(arguments)
