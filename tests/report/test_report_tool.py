"""tools/report.py: parse, call, say where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

tool = pytest.importorskip("moco_det_tools.report")


def test_the_tool_writes_both_files_and_names_them(
    tmp_path: Path, make_row: Any, write_rows: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows([make_row()])
    assert tool.main([str(path), "-o", str(tmp_path / "out"), "--title", "A title"]) == 0
    printed = capsys.readouterr().out
    assert str(tmp_path / "out" / "report.html") in printed
    assert "<h1>A title</h1>" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path / "gone"), "-o", str(tmp_path / "o")])
    assert tool.run(tool.main) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no results file") and error.count("\n") == 1
    assert not (tmp_path / "o").exists()
