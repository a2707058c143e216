"""results.jsonl: one json object a line, one line a run; numbers kept as data.

Writers append under a lock with one write, so that many runs may share a file. Readers skip what
they cannot read and say so: a torn last line must not take a night's results with it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_det.errors import InputError

SCHEMA = 1

STATUSES = ("finished", "failed")
TASKS = ("box", "box+mask", "probe")
# How a probe's accuracy comes about; `config` has the protocol's settings.
PROTOCOLS = ("knn", "linear", "linear_lbfgs", "finetune")
PRECISIONS = ("float32", "bfloat16", "float16")
AP_KEYS = ("AP", "AP50", "AP75")
ACCURACY_KEYS = ("top1", "top5", "mean_class")

_TEXT: tuple[type, ...] = (str,)
_TEXT_OR_NULL: tuple[type, ...] = (str, type(None))
_INT: tuple[type, ...] = (int,)
_INT_OR_NULL: tuple[type, ...] = (int, type(None))
_NUMBER: tuple[type, ...] = (int, float)
_OBJECT: tuple[type, ...] = (dict,)
_OBJECT_OR_NULL: tuple[type, ...] = (dict, type(None))

# What every row of schema 1 holds, whether the run finished or failed.
_FIELDS: dict[str, tuple[type, ...]] = {
    "run": _TEXT,
    "status": _TEXT,
    "task": _TEXT,
    "dataset": _OBJECT,
    "dataset.train": _TEXT,
    "dataset.test": _TEXT,
    "dataset.train_fingerprint": _TEXT,
    "dataset.test_fingerprint": _TEXT,
    "dataset.train_images": _INT,
    "dataset.test_images": _INT,
    "dataset.classes": (list,),
    "config_name": _TEXT,
    "config": _TEXT,
    "init": _OBJECT,
    "init.name": _TEXT,
    "init.weights": _TEXT_OR_NULL,
    "init.sha256": _TEXT_OR_NULL,
    "init.source": _OBJECT_OR_NULL,
    "init.verified": _OBJECT_OR_NULL,
    "engine": _OBJECT,
    "engine.name": _TEXT,
    "engine.version": _TEXT,
    "engine.torch": _TEXT,
    "engine.torchvision": _TEXT,
    "precision": _TEXT,
    "seed": _INT,
    "iterations": _INT,
    "batch": _INT,
    "wall_seconds": _NUMBER,
    "hardware": _OBJECT,
    "hardware.device": _TEXT,
    "hardware.cores": _INT,
    "output_dir": _TEXT,
    "command": _TEXT,
    "started": _TEXT,
    "warnings": (list,),
}

# What a probe's row holds beside that or otherwise: `iterations` are the steps of the pre-training,
# null where the weights do not say them, `seed` the one that the trial depends on.
_PROBE_FIELDS: dict[str, tuple[type, ...]] = {"protocol": _TEXT, "iterations": _INT_OR_NULL}

_CHOICES: dict[str, tuple[str, ...]] = {
    "status": STATUSES,
    "task": TASKS,
    "precision": PRECISIONS,
}

_MISSING = object()


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
    def probe(self) -> bool:
        """Whether the row is a probe's, with accuracies instead of APs."""
        return bool(self.data["task"] == "probe")

    def metric(self, ruler: str, key: str) -> float | None:
        """One AP in percent ("bbox", "segm" or "voc"), None where undefined or not measured.

        The ruler "probe" has accuracies: "top1", "top5" and "mean_class".
        """
        table = (self.data.get("metrics") or {}).get(ruler) or {}
        value = table.get(key)
        return None if value is None else float(value)

    def per_class(self, ruler: str) -> dict[str, float | None]:
        """AP in percent of each class by name, empty where the ruler was not used."""
        table = (self.data.get("metrics") or {}).get(ruler) or {}
        return dict(table.get("per_class") or {})


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


def validate_row(row: Mapping[str, Any]) -> None:
    """Raise InputError naming the first key of a row that schema 1 does not allow."""
    schema = row.get("schema", _MISSING)
    if schema is _MISSING:
        raise InputError(f"the row has no 'schema'; rows written today say \"schema\": {SCHEMA}")
    if isinstance(schema, bool) or schema != SCHEMA:
        raise InputError(
            f"schema {schema!r} is unknown; this version reads schema {SCHEMA}, upgrade moco_det"
        )
    fields = {**_FIELDS, **_PROBE_FIELDS} if row.get("task") == "probe" else _FIELDS
    for name, types in fields.items():
        value = _lookup(row, name)
        if value is _MISSING:
            raise InputError(f"the row lacks '{name}'")
        # json has no ints that are bools, Python does.
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            wanted = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            raise InputError(f"'{name}' is {_shown(value)}, wanted {wanted}")
    choices_of = {**_CHOICES, "protocol": PROTOCOLS} if row["task"] == "probe" else _CHOICES
    for name, choices in choices_of.items():
        if row[name] not in choices:
            raise InputError(f"'{name}' is {row[name]!r}, wanted one of {', '.join(choices)}")
    for name in ("dataset.classes", "warnings"):
        for item in _lookup(row, name):
            if not isinstance(item, str):
                raise InputError(f"'{name}' holds {_shown(item)}, wanted strings")
    metrics = row.get("metrics")
    if row["status"] == "finished":
        _validate_metrics(metrics, task=str(row["task"]))
    elif metrics is not None and not isinstance(metrics, dict):
        raise InputError(f"'metrics' is {_shown(metrics)}, wanted an object or null")


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
    line = text.encode("utf-8") + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"cannot write results to {path}: {error.strerror}") from error
    try:
        with _locked(handle, fcntl.LOCK_EX):
            end = os.lseek(handle, 0, os.SEEK_END)
            if end > 0 and os.pread(handle, 1, end - 1) != b"\n":
                line = b"\n" + line
            try:
                if os.write(handle, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            except OSError as error:
                os.ftruncate(handle, end)  # nothing half-written
                raise InputError(f"cannot write results to {path}: {error.strerror}") from error
    finally:
        os.close(handle)


def read_rows(paths: Iterable[str | Path]) -> Rows:
    """Read results files in order; unreadable lines become problems, a missing file raises.

    A folder stands for the results.jsonl inside it. A file named twice is read once.
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    seen: set[Path] = set()
    for given in paths:
        path = Path(given)
        if path.is_dir():
            path = path / "results.jsonl"
        if not path.is_file():
            raise InputError(f"no results file {path}; train_net.py writes it into its output")
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        for number, line, whole in _lines(path):
            if not line.strip():
                continue
            try:
                rows.append(Row(data=_parse(line, whole), path=path, line=number))
            except InputError as error:
                problems.append(Problem(path=path, line=number, reason=str(error)))
    return Rows(rows=tuple(rows), problems=tuple(problems))


def _parse(line: bytes, whole: bool) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        state = "not json" if whole else "torn, the writer stopped in the middle"
        raise InputError(f"{state}; skipped") from error
    if not isinstance(row, dict):
        raise InputError(f"{_shown(row)} is not a json object; skipped")
    validate_row(row)
    return row


def _refuse_constant(name: str) -> float:
    raise InputError(f"holds {name}, which is no number; undefined numbers are null; skipped")


def _lines(path: Path) -> list[tuple[int, bytes, bool]]:
    """(1-based number, bytes, ended by a newline) of each line, read between two writes."""
    try:
        with path.open("rb") as file, _locked(file.fileno(), fcntl.LOCK_SH):
            content = file.read()
    except OSError as error:
        raise InputError(f"cannot read results {path}: {error.strerror}") from error
    parts = content.split(b"\n")
    return [(i + 1, part, i + 1 < len(parts)) for i, part in enumerate(parts)]


@contextlib.contextmanager
def _locked(handle: int, mode: int) -> Iterator[None]:
    """Hold flock; a file system that has none still appends with O_APPEND's guarantee."""
    held = True
    try:
        fcntl.flock(handle, mode)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        held = False
    try:
        yield
    finally:
        if held:
            fcntl.flock(handle, fcntl.LOCK_UN)


def _validate_metrics(metrics: Any, *, task: str) -> None:
    if not isinstance(metrics, dict):
        raise InputError(f"'metrics' of a finished run is {_shown(metrics)}, wanted an object")
    if task == "probe":
        _validate_accuracies(metrics.get("probe"))
        return
    for ruler in ("bbox", "segm", "voc"):
        table = metrics.get(ruler)
        if table is None:
            if ruler == "bbox" or (ruler == "segm" and task == "box+mask"):
                raise InputError(f"'metrics.{ruler}' is missing for the task {task}")
            continue
        if not isinstance(table, dict):
            raise InputError(f"'metrics.{ruler}' is {_shown(table)}, wanted an object")
        for key in AP_KEYS:
            if key not in table:
                raise InputError(f"'metrics.{ruler}.{key}' is missing; undefined numbers are null")
        per_class = table.get("per_class") or {}
        if not isinstance(per_class, dict):
            raise InputError(
                f"'metrics.{ruler}.per_class' is {_shown(per_class)}, wanted an object"
            )
        sizes = {key: table[key] for key in (*AP_KEYS, "APs", "APm", "APl") if key in table}
        for key, value in [*sizes.items(), *((f"per_class.{k}", v) for k, v in per_class.items())]:
            _validate_percent(f"metrics.{ruler}.{key}", value)


def _validate_accuracies(table: Any) -> None:
    if not isinstance(table, dict):
        raise InputError(f"'metrics.probe' is {_shown(table)}, wanted an object")
    for key in ACCURACY_KEYS:
        if key not in table:
            raise InputError(f"'metrics.probe.{key}' is missing; undefined numbers are null")
        _validate_percent(f"metrics.probe.{key}", table[key])


def _validate_percent(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"'{name}' is {_shown(value)}, wanted a number or null")
    if not math.isfinite(value) or not -1e-6 <= value <= 100 + 1e-6:
        raise InputError(f"'{name}' is {value!r}, wanted percent from 0 to 100, or null")


def _lookup(row: Mapping[str, Any], name: str) -> Any:
    """The value at a dotted name, or _MISSING."""
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
