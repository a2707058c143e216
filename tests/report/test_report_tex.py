"""The table for a paper: its layout, its colours, and any text as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moco_det.report.groups import group_runs
from moco_det.report.table_files import escaped, tex_text
from moco_det.results import Row

SPREAD = (-0.2, -0.1, 0.0, 0.1, 0.2)


def test_the_tex_table_has_the_papers_layout_and_colours(make_row: Any) -> None:
    row = make_row("moco_a&b", 0, (31.0, 50.0, 20.0), mask=(28.0, 40.0, 15.0))
    rows = [row]
    for s, d in enumerate(SPREAD):
        rows.append(make_row("supervised", s, (30 + d, 50.0, 20.0), mask=(28 + d, 40.0, 15.0)))
        rows.append(make_row("moco", s, (32 + d, 50.0, 20.0), mask=(26 + d, 40.0, 15.0)))
    found = [Row(data=row, path=Path("results.jsonl"), line=i) for i, row in enumerate(rows)]
    text = tex_text(group_runs(found))
    assert "\\begin{tabular}{lrcccccc}" in text and "\\multicolumn{3}{c}{Mask AP}" in text
    moco = next(line for line in text.splitlines() if line.startswith("moco &"))
    assert "\\gain{+2.0}" in moco and "\\loss{$-$2.0}" in moco
    assert "moco\\_a\\&b & 1 & 31.0 \\nogap{+1.0}" in text
    assert text.count("{") == text.count("}")


def test_tex_prints_any_text_as_it_is() -> None:
    assert escaped("a_b 5% {x} \\y ~^#$&") == (
        "a\\_b 5\\% \\{x\\} \\textbackslash{}y \\textasciitilde{}\\textasciicircum{}\\#\\$\\&"
    )
