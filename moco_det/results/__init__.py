"""results.jsonl: one json object a line, one line a run; numbers kept as data."""

from moco_det.results.files import Problem, Row, Rows, append_row, read_rows
from moco_det.results.schema import (
    ACCURACY_KEYS,
    AP_KEYS,
    PRECISIONS,
    PROTOCOLS,
    SCHEMA,
    STATUSES,
    TASKS,
    validate_row,
)

__all__ = [
    "ACCURACY_KEYS",
    "AP_KEYS",
    "PRECISIONS",
    "PROTOCOLS",
    "SCHEMA",
    "STATUSES",
    "TASKS",
    "Problem",
    "Row",
    "Rows",
    "append_row",
    "read_rows",
    "validate_row",
]
