"""Rows as people read them: a table in the terminal, one row in full, and flat columns."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from moco_det.foundation.errors import InputError
from moco_det.results.files import Row

# What `table` shows of a row beside its metrics.
_HEADER = ("run", "arm", "seed", "config", "engine", "precision", "iterations", "result", "started")
# A cell that would push the table over the edge is cut; `show` has it in full.
_WIDEST = 44


def table(rows: Sequence[Row]) -> list[str]:
    """One line a row under a header; columns as wide as their widest cell."""
    lines = [_HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADER))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _cells(row: Row) -> tuple[str, ...]:
    data = row.data
    return tuple(
        _cut(str(value))
        for value in (
            data["run"],
            row.arm,
            row.seed,
            data["config_name"],
            data["engine"]["name"],
            data["precision"] or "-",
            "-" if data["iterations"] is None else data["iterations"],
            result(row),
            str(data["started"])[:16],
        )
    )


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def result(row: Row) -> str:
    """ "box 31.2 mask 28.0", "top-1 41.0", or why the run failed."""
    if not row.finished:
        return f"failed: {row.data['error']}"
    if row.probe:
        return f"top-1 {_number(row.metric('probe', 'top1'))}"
    parts = [f"box {_number(row.metric('bbox', 'AP'))}"]
    for ruler, name in (("segm", "mask"), ("voc", "voc")):
        if (row.data["metrics"] or {}).get(ruler):
            parts.append(f"{name} {_number(row.metric(ruler, 'AP'))}")
    return " ".join(parts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def find(rows: Iterable[Row], name: str) -> list[Row]:
    """The rows of a run by its name or the name's beginning; InputError where there is none."""
    rows = list(rows)
    exact = [row for row in rows if row.data["run"] == name]
    found = exact or [row for row in rows if str(row.data["run"]).startswith(name)]
    if not found:
        known = sorted({str(row.data["run"]) for row in rows})
        more = f" and {len(known) - 8} more" if len(known) > 8 else ""
        raise InputError(f"no run {name!r}; there are {', '.join(known[:8])}{more}")
    return found


def in_full(row: Row) -> str:
    """A row as readable json, its config and command as text below it."""
    data = dict(row.data)
    config, command = str(data.pop("config")), str(data.pop("command"))
    shown = json.dumps(data, indent=2, ensure_ascii=False)
    return f"{row.path}, line {row.line}\n{shown}\n\ncommand:\n{command}\n\nconfig:\n{config}"


def flat(row: Row) -> dict[str, Any]:
    """A row with dotted keys; lists as json; the AP of a class as metrics.bbox.per_class.NAME."""
    found: dict[str, Any] = {}
    _flatten(dict(row.data), "", found)
    return found


def _flatten(tree: dict[str, Any], prefix: str, found: dict[str, Any]) -> None:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            _flatten(value, f"{name}.", found)
        else:
            found[name] = json.dumps(value) if isinstance(value, list) else value


def as_csv(rows: Sequence[Row], *, delimiter: str = ",") -> str:
    """All rows as csv: every key that occurs is a column, in the order of first occurrence."""
    table_rows = [flat(row) for row in rows]
    columns = list(dict.fromkeys(key for row in table_rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table_rows)
    return text.getvalue()


def as_json(rows: Sequence[Row]) -> str:
    """All rows as one json array."""
    return json.dumps([row.data for row in rows], indent=2, ensure_ascii=False) + "\n"
