from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
QUICK = REPO / "configs" / "pretrain" / "quick" / "moco_v2_r18.yaml"


def test_the_tool_trains_and_prints_the_checkpoint(
    tiny: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tool = pytest.importorskip("moco_det_tools.pretrain")
    assert tool.main(["--config-file", str(QUICK), "--resume", *tiny]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "checkpoint.pth")


def test_run_as_a_file_bad_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    pytest.importorskip("moco_det_tools.entry")
    done = subprocess.run(
        [sys.executable, REPO / "tools" / "pretrain.py", "--config-file", QUICK]
        + ["DATA.PATH", tmp_path / "nowhere", "OUTPUT_DIR", tmp_path / "out"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: DATA.PATH") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
