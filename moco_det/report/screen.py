"""The verdict and the APs of a report as lines that a terminal is wide enough for."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Sequence
from pathlib import Path

# In the order of the columns, under these names.
COLUMNS = {"bbox": "box AP", "segm": "mask AP", "voc": "VOC AP"}
WIDTH = 98


def screen_lines(report_md: Path, tables_csv: Path) -> list[str]:
    """One line per arm and setting with its APs (percent, mean ± deviation), and the verdict.

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
    metrics = [metric for metric in COLUMNS if any(row["ruler"] == metric for row in cells)]
    arms: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in cells:
        arms.setdefault((row["arm"], row["weights_sha256"]), {})[row["ruler"]] = row
    room = max(10, *(len(arm) for arm, _ in arms)) + 2
    lines = [" " * room + "".join(f"{COLUMNS[metric]:>14}" for metric in metrics) + "     n"]
    for (arm, _), own in arms.items():
        shown = "".join(f"{_value(own.get(metric)):>14}" for metric in metrics)
        count = max(int(row["n"]) for row in own.values())
        lines.append(f"{arm:<{room}}{shown}{count:>6}")
    return lines


def _value(cell: dict[str, str] | None) -> str:
    if cell is None or not cell["mean"]:
        return "-"
    spread = f" ± {float(cell['std']):.1f}" if cell["std"] else ""
    return f"{float(cell['mean']):.1f}{spread}"
