"""The one row that every benchmark with a peer prints, and the table that is made of many.

A row is printed for a reader and, with `--rows FILE`, appended to FILE as a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEAD = ("what", "case", "unit", "peer", "", "ours", "", "ratio")


def add_rows_option(parser: argparse.ArgumentParser) -> None:
    """The option --rows, whose value `write_row` takes."""
    parser.add_argument("--rows", type=Path, metavar="FILE", help="append the result, as JSON")


def write_row(
    file: Path | None,
    *,
    what: str,
    case: str,
    peer: str,
    ours: str,
    unit: str,
    there: Sequence[float],
    here: Sequence[float],
) -> None:
    """Print and append the medians over rounds of the peer's and our numbers, and of the ratios.

    Ratios are taken within a round, above 1 where ours is the better: more of a unit per second
    (images/s) or of AP, less of any other.
    """
    more = unit.endswith("/s") or unit == "AP"
    ratios = [b / a if more else a / b for a, b in zip(there, here, strict=True)]
    row = {
        "what": what,
        "case": case,
        "unit": unit,
        "peer": peer,
        "there": statistics.median(there),
        "ours": ours,
        "here": statistics.median(here),
        "ratio": statistics.median(ratios),
    }
    print("  ".join(cells(row)), flush=True)
    if file is not None:
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")


def cells(row: dict[str, Any]) -> list[str]:
    """A row's texts, numbers with three digits that count."""
    numbers = {"there", "here"}
    return [
        f"{value:.2f}" if key == "ratio" else f"{value:.4g}" if key in numbers else str(value)
        for key, value in row.items()
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """All rows in Markdown."""
    lines = [f"| {' | '.join(HEAD)} |", "|---|---|---|---|--:|---|--:|--:|"]
    return "\n".join(lines + [f"| {' | '.join(cells(row))} |" for row in rows]) + "\n"
