"""The verdict and the APs of a report as lines that a terminal is wide enough for."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Sequence
from pathlib import Path

# In the order of the columns, under these names.
RULERS = {"bbox": "box AP", "segm": "mask AP", "voc": "VOC AP"}
WIDTH = 98


def screen_lines(report_md: Path, tables_csv: Path) -> list[str]:
    """A line an arm and setting with its APs (percent, mean ± sample deviation), and the verdict.

    Reads the two files of one report that `make_report` wrote.
    """
    with open(tables_csv, encoding="utf-8", newline="") as file:
        cells = [row for row in csv.DictReader(file) if row["metric"] == "AP"]
    lines: list[str] = []
    for setting in dict.fromkeys(row["setting"] for row in cells):
        lines += [*_table([row for row in cells if row["setting"] == setting]), ""]
    _, _, rest = report_md.read_text(encoding="utf-8").partition("\n## Verdict\n")
    for paragraph in rest.split("\n## ")[0].split("\n\n"):
        if paragraph.strip() and not paragraph.startswith(("|", "!")):  # a table, a picture
            text = paragraph.strip().lstrip("# ").replace("**", "")
            lines += [*textwrap.wrap(text, WIDTH), ""]
    return lines


def _table(cells: Sequence[dict[str, str]]) -> list[str]:
    rulers = [ruler for ruler in RULERS if any(row["ruler"] == ruler for row in cells)]
    arms = list(dict.fromkeys((row["arm"], row["weights_sha256"]) for row in cells))
    room = max(10, *(len(arm) for arm, _ in arms)) + 2
    lines = ["".join([" " * room, *(f"{RULERS[ruler]:>14}" for ruler in rulers), "     n"])]
    for arm in arms:
        own = {r["ruler"]: r for r in cells if (r["arm"], r["weights_sha256"]) == arm}
        shown = [f"{_value(own[r]) if r in own else '-':>14}" for r in rulers]
        count = max(int(row["n"]) for row in own.values())
        lines.append("".join([f"{arm[0]:<{room}}", *shown, f"{count:>6}"]))
    return lines


def _value(cell: dict[str, str]) -> str:
    if not cell["mean"]:
        return "-"
    spread = f" ± {float(cell['std']):.1f}" if cell["std"] else ""
    return f"{float(cell['mean']):.1f}{spread}"
