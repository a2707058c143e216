"""Rows for reading: a table in the terminal, one row in full, and flat columns."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence

from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import flatten
from moco_det.results.files import Row

# What `table` shows of a row.
_HEADER = ("run", "arm", "seed", "config", "engine", "precision", "iterations", "result", "started")
# A cell that would push the table over the edge is cut; `show` has it in full.
_WIDEST = 44


def table(rows: Sequence[Row]) -> list[str]:
    """One line per row under a header; columns as wide as their widest cell."""
    lines = [_HEADER, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _cells(row: Row) -> tuple[str, ...]:
    data = row.data
    engine, precision, steps = data["engine"]["name"], data["precision"], data["iterations"]
    known = [data["run"], row.arm, row.seed, data["config_name"], engine]
    known += [precision or "-", "-" if steps is None else steps, result(row), data["started"][:16]]
    texts = map(str, known)
    return tuple(t if len(t) <= _WIDEST else t[: _WIDEST - 1] + "…" for t in texts)


def result(row: Row) -> str:
    """ "box 31.2 mask 28.0", "top-1 41.0", or why the run failed."""
    if not row.finished:
        return f"failed: {row.data['error']}"
    if row.probe:
        return f"top-1 {_number(row.metric('probe', 'top1'))}"
    names = {"bbox": "box", "segm": "mask", "voc": "voc"}
    measured = [name for name in names if row.metric_table(name)]
    return " ".join(f"{names[name]} {_number(row.metric(name, 'AP'))}" for name in measured)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def find(rows: Iterable[Row], name: str) -> list[Row]:
    """The rows of a run by its name or the name's beginning; InputError where there is none."""
    rows = list(rows)
    exact = [row for row in rows if row.data["run"] == name]
    found = exact or [row for row in rows if row.data["run"].startswith(name)]
    if not found:
        known = sorted({row.data["run"] for row in rows})
        more = f" and {len(known) - 8} more" if len(known) > 8 else ""
        raise InputError(f"no run {name!r}; there are {', '.join(known[:8])}{more}")
    return found


def in_full(row: Row) -> str:
    """A row as readable json, its config and command as text below it."""
    data = dict(row.data)
    config, command = data.pop("config"), data.pop("command")
    shown = json.dumps(data, indent=2, ensure_ascii=False)
    return f"{row.path}, line {row.line}\n{shown}\n\ncommand:\n{command}\n\nconfig:\n{config}"


def as_csv(rows: Sequence[Row], *, delimiter: str = ",") -> str:
    """All rows as csv: every dotted key that occurs is a column, in order of first occurrence.

    Lists are written as json.
    """
    flat = [
        {
            key: json.dumps(value) if isinstance(value, list) else value
            for key, value in flatten(row.data).items()
            if value != {}
        }
        for row in rows
    ]
    text = io.StringIO()
    columns = dict.fromkeys(key for row in flat for key in row)
    writer = csv.DictWriter(text, list(columns), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def as_json(rows: Sequence[Row]) -> str:
    """All rows as one json array."""
    return json.dumps([row.data for row in rows], indent=2, ensure_ascii=False) + "\n"
