"""Appending rows to results.jsonl and reading them back.

Writers append under a lock with one write, so that many runs may share a file. Readers skip what
they cannot read and say so: a torn last line must not take a night's results with it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_det.foundation.atomic import append_line, locked, make_folder
from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import MOST_DATA, open_regular
from moco_det.results.schema import shown, upgrade, validate_row


@dataclass(frozen=True)
class Row:
    """One run's line and the place it was read from."""

    data: Mapping[str, Any]
    path: Path
    line: int

    @property
    def run_dir(self) -> Path:
        """The run's folder; the row names it relative to the results file."""
        return self.path.parent / str(self.data["output_dir"])

    def file(self, name: str) -> Path:
        """A file of the run's folder; InputError where a row leads out of its results' folder."""
        path = Path(os.path.realpath(self.run_dir / name))
        if not path.is_relative_to(os.path.realpath(self.path.parent)):
            raise InputError(
                f"the folder of run {shown(self.data['run'])} is not in {self.path.parent}, where "
                "its row stands: nothing in it is read"
            )
        return path

    @property
    def finished(self) -> bool:
        """Whether the run reached its end and was scored."""
        return bool(self.data["status"] == "finished")

    @property
    def arm(self) -> str:
        """The name of the initialisation."""
        return str(self.data["init"]["name"])

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.data["seed"])

    @property
    def trial(self) -> tuple[int, str]:
        """The seed and the data that were trained on, which tell apart the folds of a share."""
        return self.seed, str(self.data["dataset"]["train_fingerprint"])

    @property
    def probe(self) -> bool:
        """Whether the row is a probe's, with accuracies instead of APs."""
        return bool(self.data["task"] == "probe")

    def metric(self, name: str, key: str) -> float | None:
        """One AP in percent ("bbox", "segm" or "voc"), None where undefined or not measured.

        The metric "probe" has accuracies: "top1", "top5" and "mean_class".
        """
        value = self.metric_table(name).get(key)
        return None if value is None else float(value)

    def per_class(self, name: str) -> dict[str, float | None]:
        """AP in percent of each class by name, empty where the metric was not measured."""
        return dict(self.metric_table(name).get("per_class") or {})

    def metric_table(self, name: str) -> Mapping[str, Any]:
        """All that a row holds of one metric, empty where it was not measured."""
        return (self.data.get("metrics") or {}).get(name) or {}


@dataclass(frozen=True)
class Problem:
    """A line that was skipped, and why."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path.name} line {self.line}: {self.reason}"


@dataclass(frozen=True)
class Rows:
    """What was read, in the files' order, and what was skipped."""

    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]


def append_row(path: str | Path, row: Mapping[str, Any]) -> None:
    """Append one validated row; any number of processes and threads may do so at once.

    The row reaches the file whole, in one write and synced, or not at all. A torn last line of
    an earlier writer is closed first so that it does not swallow this row.
    """
    path = Path(path)
    validate_row(row)
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"run {row['run']!r} cannot be written as json: {error}; undefined numbers are null"
        ) from error
    make_folder(path.parent)
    # a name in another encoding costs no row
    append_line(path, text.encode("utf-8", "replace").decode())


def read_rows(paths: Iterable[str | Path]) -> Rows:
    """Read results files in order; unreadable lines become problems, a missing file raises.

    A folder stands for the results.jsonl inside it. A file named twice is read once.
    """
    files: dict[Path, Path] = {}
    for given in map(Path, paths):
        path = given / "results.jsonl" if given.is_dir() else given
        if not path.is_file():
            raise InputError(f"no results file {path}: name one that moco-det train-net wrote")
        files.setdefault(Path(os.path.realpath(path)), path)
    rows: list[Row] = []
    problems: list[Problem] = []
    for path in files.values():
        lines = _content(path).split(b"\n")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                rows.append(Row(_parse(line, whole=number < len(lines)), path, number))
            except InputError as error:
                problems.append(Problem(path, number, str(error)))
    return Rows(tuple(rows), tuple(problems))


def _parse(line: bytes, *, whole: bool) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        state = "not json" if whole else "torn, the writer stopped in the middle"
        raise InputError(f"{state}; skipped") from error
    if not isinstance(row, dict):
        raise InputError(f"{shown(row)} is not a json object; skipped")
    if b"\\ud" in line.lower():  # half of a pair of them is no text that can be written
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"holds text that is not unicode ({error.reason}); skipped") from error
    validate_row(row)
    return upgrade(row)


def _refuse_constant(name: str) -> float:
    raise InputError(f"holds {name}, which is no number; undefined numbers are null; skipped")


def _content(path: Path) -> bytes:
    """The file as it stands between two writes."""
    try:
        with open_regular(path, MOST_DATA) as file, locked(file, fcntl.LOCK_SH):
            return file.read()
    except OSError as error:
        raise InputError(f"cannot read results {path}: {error.strerror}") from error
