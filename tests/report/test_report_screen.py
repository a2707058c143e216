"""What a terminal shows of a report."""

from __future__ import annotations

from pathlib import Path

from moco_det.report.screen import screen_lines
from moco_det.report.table_files import HEADER


def written(folder: Path, rows: list[dict[str, str]], verdict: str) -> tuple[Path, Path]:
    lines = [HEADER]
    lines += [",".join(row.get(column, "") for column in HEADER.split(",")) for row in rows]
    (folder / "tables.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = f"# T\n\n## Verdict\n\n{verdict}\n\n## Average precision\n\nnot this\n"
    (folder / "report.md").write_text(text, encoding="utf-8")
    return folder / "report.md", folder / "tables.csv"


def cell(arm: str, ruler: str, mean: str, std: str, **more: str) -> dict[str, str]:
    row = {"setting": "1", "metric": "AP", "n": "2", "arm": arm, "ruler": ruler}
    return {**row, "mean": mean, "std": std, **more}


def test_every_arm_is_one_line_with_its_aps_and_nothing_is_wide(tmp_path: Path) -> None:
    rows = [
        cell("random", "bbox", "3.0209", "0.1413"),
        cell("random", "bbox", "10.1", "0.2", metric="AP50"),
        cell("random", "segm", "1.74", "", n="1"),
        cell("moco", "bbox", "", ""),
    ]
    shown = screen_lines(*written(tmp_path, rows, "**A is above B**: " + "word " * 60))
    assert [line.split() for line in shown[:3]] == [
        ["box", "AP", "mask", "AP", "n"],
        ["random", "3.0", "±", "0.1", "1.7", "2"],
        ["moco", "-", "-", "2"],
    ]
    assert shown[4].startswith("A is above B: word") and max(map(len, shown)) <= 98
    assert "not this" not in shown


def test_settings_stand_apart_and_tables_of_the_verdict_are_left_to_the_report(
    tmp_path: Path,
) -> None:
    rows = [cell("moco", "voc", "1", "0", setting=s) for s in ("1", "2")]
    shown = screen_lines(*written(tmp_path, rows, "### Setting A\n\nyes\n\n| a | b |\n| - | - |"))
    assert [line.split()[-1] for line in shown if line] == ["n", "2", "n", "2", "A", "yes"]
