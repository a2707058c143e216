"""The page as data: sections of blocks, which one template writes as html and one as markdown."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from moco_det.report.formats import tick


class Cell(NamedTuple):
    """A value, a second line under it, and how it looks ("gain", "loss", "code" or nothing).

    `colour` is the number of an arm's colour.
    """

    text: str
    note: str = ""
    tone: str = ""
    colour: int | None = None


@dataclass
class Table:
    """`words` columns from the left hold words, the others numbers; plain values become cells."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    words: int = 1

    def __post_init__(self) -> None:
        self.rows = [
            [cell if isinstance(cell, Cell) else Cell(str(cell)) for cell in row]
            for row in self.rows
        ]


class Heading(NamedTuple):
    """A heading inside a section; one with a `detail` begins a setting."""

    text: str
    detail: str = ""


class Sentence(NamedTuple):
    """One sentence; `finding` is its part that answers the question and is printed strong."""

    text: str
    finding: str = ""


class Text(NamedTuple):
    """A paragraph; `style` is its class in the style sheet."""

    sentences: Sequence[Sentence]
    style: str = "soft"


class Figure(NamedTuple):
    """A chart and its caption."""

    title: str
    svg: Markup
    caption: str


class Figures(NamedTuple):
    """Charts side by side under a legend of (arm, colour); html only, but for asked captions."""

    figures: Sequence[Figure]
    legend: Sequence[tuple[str, int]] = ()
    captions: bool = False


class Items(NamedTuple):
    """A list, "None." where it is empty."""

    lines: Sequence[str]


class Commands(NamedTuple):
    """(run, its command) pairs."""

    pairs: Sequence[tuple[str, str]]


class Picture(NamedTuple):
    """One image, why it is shown, and its panels: (whose, counts, drawing), ground truth first."""

    name: str
    why: str
    panels: Sequence[tuple[str, str, Markup]]


class Pictures(NamedTuple):
    """Pictures under a legend of (class, colour), html only; `pixels` are what they draw upon."""

    pictures: Sequence[Picture]
    legend: Sequence[tuple[str, int]]
    pixels: Markup


class Preformatted(NamedTuple):
    """Text as it stands, html only."""

    text: str


class Fold(NamedTuple):
    """Blocks that html shows on a click; markdown shows them at once."""

    summary: str
    blocks: Sequence[Block]
    open: bool = False


Block = Table | Heading | Text | Figures | Items | Commands | Pictures | Preformatted | Fold


class Section(NamedTuple):
    """A part of the page with its place in the navigation."""

    link: str
    title: str
    blocks: Sequence[Block]
    in_markdown: bool = True

    @property
    def anchor(self) -> str:
        return self.link.lower().replace(" ", "-")


class Page(NamedTuple):
    """All that the templates write; sections without blocks are left out."""

    title: str
    summary: str
    sections: Sequence[Section]


def text(said: str, style: str = "soft") -> Text:
    """A paragraph of one sentence."""
    return Text([Sentence(said)], style)


def table_of(caption: str, rows: Sequence[Mapping[str, Any]], words: int = 1) -> Table:
    """A table whose rows name their columns."""
    header = list(rows[0]) if rows else []
    return Table(caption, header, [list(row.values()) for row in rows], words)


def render(template: str, context: Mapping[str, Any]) -> str:
    """A template filled in; markup is escaped in html and svg."""
    return _environment(template.split(".")[1]).get_template(template).render(context)


@lru_cache(maxsize=4)
def _environment(kind: str) -> Environment:
    tex = kind == "tex"  # LaTeX is full of braces
    environment = Environment(
        loader=PackageLoader("moco_det.report", "templates"),
        autoescape=kind in ("html", "svg"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=kind != "svg",
        variable_start_string="<<" if tex else "{{",
        variable_end_string=">>" if tex else "}}",
    )
    environment.filters |= {"cell": _markdown, "fence": _fence, "kind": lambda b: type(b).__name__}
    environment.filters |= {"f": "{:.1f}".format, "tick": tick}
    return environment


def render_html(page: Page) -> str:
    """The page as one file that loads nothing."""
    script = (resources.files("moco_det.report") / "templates" / "sort.js").read_text("utf-8")
    # The page may run this script and no other: its policy names the script's digest.
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    context = {"page": page, "script": Markup(script), "script_hash": f"sha256-{digest}"}
    return render("report.html.j2", context)


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
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
