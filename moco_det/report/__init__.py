"""Tables and pictures made from data: results.jsonl in, one offline page and its markdown out."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from moco_det.foundation.errors import InputError
from moco_det.report.between import Between, compare_reports
from moco_det.report.flat_tables import csv_text, tex_text
from moco_det.report.groups import Arm, Group, group_rows
from moco_det.report.page import Page, build_page
from moco_det.report.statistics import Comparison, Summary, compare, summarise
from moco_det.results import read_rows

__all__ = [
    "Arm",
    "Between",
    "Comparison",
    "Group",
    "Summary",
    "compare",
    "compare_reports",
    "group_rows",
    "make_report",
    "summarise",
]

# file name -> template
TEMPLATES: dict[str, str] = {"report.html": "report.html.j2", "report.md": "report.md.j2"}


def make_report(
    results: Sequence[str | Path],
    out_dir: str | Path,
    *,
    title: str | None = None,
    pretraining: Sequence[str | Path] = (),
    against: Sequence[str | Path] = (),
) -> dict[str, Path]:
    """Write report.html (one file, no network), report.md, tables.csv and tables.tex.

    Returns {file name: path}.

    `results` are results.jsonl files (or folders that hold one), `pretraining` folders with a
    pre-training's metrics.jsonl, `against` results to compare these with. The same data gives the
    same bytes. Raises InputError where a file is missing or no run has finished.
    """
    if not results:
        raise InputError("no results given; name one results.jsonl or more")
    rows = read_rows(results)
    between = compare_reports(rows.rows, read_rows(against).rows) if against else None
    page = build_page(
        rows, title=title, pretraining=[Path(path) for path in pretraining], between=between
    )
    groups = group_rows(rows.rows)
    texts = {name: _render(template, page) for name, template in TEMPLATES.items()}
    texts |= {"tables.csv": csv_text(groups), "tables.tex": tex_text(groups)}
    out = Path(out_dir)
    try:
        out.mkdir(parents=True, exist_ok=True)
        return {name: _write(out / name, text) for name, text in texts.items()}
    except OSError as error:
        raise InputError(f"cannot write the report to {out}: {error.strerror}") from error


def _render(template: str, page: Page) -> str:
    environment = Environment(
        loader=PackageLoader("moco_det.report", "templates"),
        autoescape=select_autoescape(enabled_extensions=("html.j2", "svg.j2", "html")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _markdown
    environment.filters["fence"] = _fence
    script = (resources.files("moco_det.report") / "templates" / "sort.js").read_text("utf-8")
    # The page may run this script and no other: its policy names the script's digest.
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return environment.get_template(template).render(
        page=page, script=Markup(script), script_hash=f"sha256-{digest}"
    )


def _markdown(value: Any, strip: bool = True) -> str:
    """Text that stays text in a markdown table: no markup of its own, no line break."""
    text = re.sub(r"\s+", " ", str(value))
    text = text.strip() if strip else text
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(character, entity)
    for character in "\\`*|":
        text = text.replace(character, "\\" + character)
    # An underscore inside a word and a lone bracket are harmless; emphasis and links are not.
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\_", text)
    return re.sub(r"\](?=[(\[:])", r"\]", text)


def _fence(text: str) -> str:
    """A code fence longer than any run of backticks inside the text."""
    longest = 2
    while "`" * (longest + 1) in text:
        longest += 1
    return "`" * (longest + 1)


def _write(path: Path, text: str) -> Path:
    """Whole or not at all: under a temporary name, synced, then renamed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
