"""results.jsonl: one line of json per run; numbers kept as data."""

from moco_det.results.files import Row, Rows, append_row, read_rows
from moco_det.results.schema import AP_KEYS, SCHEMA, validate_row

__all__ = ["AP_KEYS", "SCHEMA", "Row", "Rows", "append_row", "read_rows", "validate_row"]
