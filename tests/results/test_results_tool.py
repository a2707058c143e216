"""`moco-det results ls|show|export`: rows as people read them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from moco_det.foundation.errors import InputError
from moco_det.results import append_row
from moco_det_tools import cli
from moco_det_tools.results import main


@pytest.fixture
def results(tmp_path: Path) -> Path:
    def row(run: str, arm: str, **changes: Any) -> dict[str, Any]:
        base: dict[str, Any] = {
            "schema": 2,
            "run": run,
            "status": "finished",
            "task": "box",
            "dataset": {
                "train": "a",
                "test": "b",
                "train_fingerprint": "f",
                "test_fingerprint": "f",
                "train_images": 2,
                "test_images": 1,
                "classes": ["a cat, a dog"],
            },
            "config_name": "toy",
            "config": "SEED: 0\n",
            "init": {
                "name": arm,
                "weights": None,
                "sha256": None,
                "source": None,
                "verified": None,
            },
            "engine": {"name": "standalone", "version": "1", "torch": "2", "torchvision": "0"},
            "precision": "float32",
            "seed": 0,
            "iterations": 10,
            "batch": 2,
            "wall_seconds": 1.5,
            "hardware": {"device": "cpu", "cores": 2},
            "metrics": {"bbox": {"AP": 12.34, "AP50": None, "AP75": 5, "per_class": {"cat": 1.0}}},
            "output_dir": ".",
            "command": "train_net.py --x",
            "started": "2025-01-01T00:00:00Z",
            "warnings": [],
        }
        return {**base, **changes}

    path = tmp_path / "results.jsonl"
    append_row(path, row("moco_seed0", "moco"))
    failed = {"status": "failed", "metrics": None, "precision": None, "error": "no images"}
    append_row(path, row("random_seed0", "random", **failed))
    return path


def test_ls_prints_one_line_per_row_and_what_it_skipped(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with results.open("a", encoding="utf-8") as file:
        file.write('{"torn')
    assert main(["ls", str(results)]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert len(lines) == 3 and lines[0].split()[:3] == ["run", "arm", "seed"]
    assert "box 12.3" in lines[1] and "failed: no images" in lines[2]
    assert "line 3: torn" in said.err


def test_ls_keeps_the_rows_asked_for(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", str(results), "--status", "finished"]) == 0
    assert "random_seed0" not in capsys.readouterr().out
    assert main(["ls", str(results), "--arm", "random"]) == 0
    assert "moco_seed0" not in capsys.readouterr().out


def test_show_prints_row_command_and_config(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "moco", str(results)]) == 0
    said = capsys.readouterr().out
    assert '"AP": 12.34' in said and "train_net.py --x" in said and "SEED: 0" in said
    with pytest.raises(InputError, match="no run 'gone'; there are moco_seed0, random_seed0"):
        main(["show", "gone", str(results)])


def test_export_has_a_column_for_every_key(results: Path, tmp_path: Path) -> None:
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        out = tmp_path / f"rows{suffix}"
        assert main(["export", str(results), "-o", str(out)]) == 0
        rows = list(csv.DictReader(out.open(encoding="utf-8"), delimiter=delimiter))
        assert [row["metrics.bbox.AP"] for row in rows] == ["12.34", ""]
        assert rows[0]["metrics.bbox.per_class.cat"] == "1.0"
        assert json.loads(rows[0]["dataset.classes"]) == ["a cat, a dog"]
        assert rows[1]["error"] == "no images"
    out = tmp_path / "rows.json"
    assert main(["export", str(results), "-o", str(out), "--arm", "moco"]) == 0
    assert [row["run"] for row in json.loads(out.read_text(encoding="utf-8"))] == ["moco_seed0"]


def test_an_unknown_format_is_refused_and_nothing_is_written(results: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.csv, \.tsv, \.json"):
        main(["export", str(results), "-o", str(tmp_path / "rows.xls")])
    assert not (tmp_path / "rows.xls").exists()


def test_it_is_a_subcommand(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["results", "ls", str(results)]) == 0
    assert "moco_seed0" in capsys.readouterr().out
