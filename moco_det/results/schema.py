"""What a row of results.jsonl holds, by the version of its schema.

Version 1: the fields below, in every row. Version 2: a failed row also has `error`, one line that
says why, and is null in whatever the run never learned (a config that did not load has no data).
Rows of version 1 are read as they are and brought to version 2 in memory; files are not rewritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moco_det.foundation.errors import InputError

# What is written today, and what can be read.
SCHEMA = 2
READABLE = (1, 2)

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

# What every row holds, whether the run finished or failed.
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

# What a failed row of schema 2 may say null to: the run ended before it knew.
_LEARNED: frozenset[str] = frozenset(
    {
        "dataset.train_fingerprint",
        "dataset.test_fingerprint",
        "dataset.train_images",
        "dataset.test_images",
        "dataset.classes",
        "engine.version",
        "engine.torch",
        "engine.torchvision",
        "precision",
        "iterations",
        "batch",
        "hardware.device",
        "hardware.cores",
    }
)

_CHOICES: dict[str, tuple[str, ...]] = {
    "status": STATUSES,
    "task": TASKS,
    "precision": PRECISIONS,
}

_MISSING = object()

# More seconds or iterations than this are a slip of the pen.
_MOST = 1e12


def validate_row(row: Mapping[str, Any]) -> None:
    """Raise InputError naming the first key of a row that its schema does not allow."""
    schema = row.get("schema", _MISSING)
    if schema is _MISSING:
        raise InputError(f"the row has no 'schema'; rows written today say \"schema\": {SCHEMA}")
    if isinstance(schema, bool) or schema not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise InputError(
            f"schema {schema!r} is unknown; this version reads schemas {known}, upgrade moco_det"
        )
    fields = {**_FIELDS, **_PROBE_FIELDS} if row.get("task") == "probe" else _FIELDS
    unlearned = schema >= 2 and row.get("status") == "failed"
    for name, types in fields.items():
        value = _lookup(row, name)
        if value is _MISSING:
            raise InputError(f"the row lacks '{name}'")
        if value is None and unlearned and name in _LEARNED:
            continue
        # json has no ints that are bools, Python does.
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            wanted = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            raise InputError(f"'{name}' is {shown(value)}, wanted {wanted}")
    choices_of = {**_CHOICES, "protocol": PROTOCOLS} if row["task"] == "probe" else _CHOICES
    for name, choices in choices_of.items():
        if row[name] is not None and row[name] not in choices:
            raise InputError(f"'{name}' is {row[name]!r}, wanted one of {', '.join(choices)}")
    _validate_values(row)
    for name in ("dataset.classes", "warnings"):
        for item in _lookup(row, name) or ():
            if not isinstance(item, str):
                raise InputError(f"'{name}' holds {shown(item)}, wanted strings")
    metrics = row.get("metrics")
    if row["status"] == "finished":
        _validate_metrics(metrics, task=str(row["task"]))
    elif metrics is not None and not isinstance(metrics, dict):
        raise InputError(f"'metrics' is {shown(metrics)}, wanted an object or null")
    if unlearned and (not isinstance(row.get("error"), str) or not row["error"].strip()):
        raise InputError(f"'error' is {shown(row.get('error'))}, wanted why the run failed")


def _validate_values(row: Mapping[str, Any]) -> None:
    """Raise InputError for a value of the right type that no run can have."""
    # compared and not converted: json's integers may be too long for a float
    if not 0 <= row["wall_seconds"] <= _MOST:
        raise InputError(f"'wall_seconds' is {shown(row['wall_seconds'])}, wanted seconds")
    if row["status"] == "finished" and row["task"] != "probe":
        for name in ("iterations", "batch"):
            if not 1 <= row[name] <= _MOST:
                raise InputError(f"'{name}' is {shown(row[name])}, wanted a number above 0")
    given = row["init"].get("input")
    if given is not None and not isinstance(given, dict):
        raise InputError(f"'init.input' is {shown(given)}, wanted an object or null")
    if "\0" in row["output_dir"]:
        raise InputError(f"'output_dir' is {shown(row['output_dir'])}, wanted a folder")


def upgrade(row: dict[str, Any]) -> dict[str, Any]:
    """A validated row of any readable schema as one of today's."""
    if row["schema"] == SCHEMA:
        return row
    newer = {**row, "schema": SCHEMA}
    if row["status"] == "failed" and not row.get("error"):
        newer["error"] = "; ".join(row["warnings"]) or "no reason was recorded"
    return newer


def _validate_metrics(metrics: Any, *, task: str) -> None:
    if not isinstance(metrics, dict):
        raise InputError(f"'metrics' of a finished run is {shown(metrics)}, wanted an object")
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
            raise InputError(f"'metrics.{ruler}' is {shown(table)}, wanted an object")
        for key in AP_KEYS:
            if key not in table:
                raise InputError(f"'metrics.{ruler}.{key}' is missing; undefined numbers are null")
        per_class = table.get("per_class") or {}
        if not isinstance(per_class, dict):
            raise InputError(f"'metrics.{ruler}.per_class' is {shown(per_class)}, wanted an object")
        sizes = {key: table[key] for key in (*AP_KEYS, "APs", "APm", "APl") if key in table}
        for key, value in [*sizes.items(), *((f"per_class.{k}", v) for k, v in per_class.items())]:
            _validate_percent(f"metrics.{ruler}.{key}", value)


def _validate_accuracies(table: Any) -> None:
    if not isinstance(table, dict):
        raise InputError(f"'metrics.probe' is {shown(table)}, wanted an object")
    for key in ACCURACY_KEYS:
        if key not in table:
            raise InputError(f"'metrics.probe.{key}' is missing; undefined numbers are null")
        _validate_percent(f"metrics.probe.{key}", table[key])


def _validate_percent(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"'{name}' is {shown(value)}, wanted a number or null")
    if not -1e-6 <= value <= 100 + 1e-6:
        raise InputError(f"'{name}' is {shown(value)}, wanted percent from 0 to 100, or null")


def _lookup(row: Mapping[str, Any], name: str) -> Any:
    """The value at a dotted name, or _MISSING."""
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
