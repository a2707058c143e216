"""Tables and pictures made from data: results.jsonl in, one offline page and its markdown out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moco_det.foundation.atomic import write_text
from moco_det.foundation.errors import InputError
from moco_det.report.document import render, render_html
from moco_det.report.groups import group_runs
from moco_det.report.hypotheses import Study
from moco_det.report.page import build_page
from moco_det.report.report_diff import compare_reports
from moco_det.report.table_files import csv_text, tex_text
from moco_det.results import read_rows

__all__ = ["compare_reports", "make_report"]


def make_report(
    results: str | Path | Sequence[str | Path],
    out_dir: str | Path,
    *,
    title: str | None = None,
    pretraining: Sequence[str | Path] = (),
    against: Sequence[str | Path] = (),
    notes: Sequence[str] = (),
    studies: Sequence[Study] = (),
) -> dict[str, Path]:
    """Write report.html (one file, no network), report.md, tables.csv and tables.tex.

    Returns {file name: path}.

    `results` are results.jsonl files (or folders that hold one), `pretraining` folders with a
    pre-training's metrics.jsonl, `against` results to compare these with, `notes` sentences to
    follow the verdict, `studies` what was found of declared hypotheses. The same data gives the
    same bytes. Raises InputError where a file is missing, or no run has finished and there is no
    study.
    """
    if isinstance(results, (str, Path)):
        results = [results]
    if not (results or studies):
        raise InputError("no results given; name one results.jsonl or more")
    rows = read_rows(results)
    diff = compare_reports(rows.rows, read_rows(against).rows) if against else None
    curves = [Path(p) for p in pretraining]
    page = build_page(
        rows, title=title, pretraining=curves, diff=diff, notes=notes, studies=studies
    )
    groups = group_runs(rows.rows)
    texts = {
        "report.html": render_html(page),
        "report.md": render("report.md.j2", {"page": page}),
        "tables.csv": csv_text(groups),
        "tables.tex": tex_text(groups),
    }
    for name, text in texts.items():
        write_text(Path(out_dir) / name, text)
    return {name: Path(out_dir) / name for name in texts}
