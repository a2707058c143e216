"""A report's html as the tests look at it: balanced tags, tables of cells, text."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from moco_det.report import make_report

VOID = {"meta", "link", "br", "hr", "img", "input"}
DRAWN = {"path", "rect", "circle", "use", "image", "line"}


class ParsedPage(HTMLParser):
    """Checks that tags are balanced; collects the tables' cells, all tags and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in DRAWN
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if self.open and {"td", "th"} & set(self.open):
            separator = "|" if self.open[-1] == "small" else ""
            self.tables[-1][-1][-1] += separator + data


def page_of(path: Path, out: Path, **options: Any) -> tuple[ParsedPage, str]:
    written = make_report([path], out, **options)
    html = written["report.html"].read_text(encoding="utf-8")
    return ParsedPage(html), written["report.md"].read_text(encoding="utf-8")


def table_with(page: ParsedPage, column: str, caption_row: str) -> list[list[str]]:
    return next(
        t for t in page.tables if column in t[0] and any(row[0] == caption_row for row in t[1:])
    )
