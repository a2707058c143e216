"""What a row of results.jsonl holds, as one schema that mirrors the row.

Version 1: the fields below, in every row. Version 2: a failed row also has `error`, one line that
says why, and is null in whatever the run never learned (a config that did not load has no data).
Rows of version 1 are read as they are and brought to version 2 in memory; files are not rewritten.
Keys that the schema does not name are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from moco_det.foundation.errors import InputError

# What is written today, and what can be read.
SCHEMA = 2
READABLE = (1, 2)

AP_KEYS = ("AP", "AP50", "AP75")
ACCURACY_KEYS = ("top1", "top5", "mean_class")

# More seconds or iterations than this are a slip of the pen.
_MOST = 1e12


@dataclass(frozen=True)
class Field:
    """What one value must be, in words and as a test.

    `learned` fields may be null in a failed row: the run ended before it knew.
    """

    wanted: str
    accepts: Callable[[Any], bool]
    optional: bool = False
    learned: bool = False

    def or_null(self) -> Field:
        """The field with null allowed."""
        return replace(
            self, wanted=f"{self.wanted} or null", accepts=lambda v: v is None or self.accepts(v)
        )


Fields = Mapping[str, Any]  # key -> Field or Fields


def _number(low: float, high: float) -> Callable[[Any], bool]:
    # json has no numbers that are bools, Python does; NaN is in no range
    return lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and low <= v <= high


def _choice(*values: str) -> Field:
    return Field(f"one of {', '.join(values)}", lambda value: value in values)


def _learned(field: Field) -> Field:
    return replace(field, learned=True)


TEXT = Field("a string", lambda value: isinstance(value, str))
REASON = Field("why the run failed", lambda value: isinstance(value, str) and bool(value.strip()))
FOLDER = Field("a folder", lambda value: isinstance(value, str) and "\0" not in value)
INT = Field(
    "an integer",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63,
)
COUNT = Field("a number above 0", lambda value: INT.accepts(value) and 1 <= value <= _MOST)
SECONDS = Field("seconds", _number(0, _MOST))
PERCENT = Field("percent from 0 to 100", _number(-1e-6, 100 + 1e-6)).or_null()
OBJECT = Field("an object", lambda value: isinstance(value, dict))
TEXTS = Field("a list of strings", lambda v: isinstance(v, list) and all(map(TEXT.accepts, v)))
PERCENTS = Field(
    "an object of percents from 0 to 100",
    lambda value: (
        not value or (OBJECT.accepts(value) and all(map(PERCENT.accepts, value.values())))
    ),
    optional=True,
)

# What every row holds, whether the run finished or failed. `train_share` is the same for the folds
# of one share of a training set. `wall_seconds` are those of the whole run, however often it was
# resumed; `started` is when the process began that wrote the row.
ROW: Fields = {
    "run": TEXT,
    "status": _choice("finished", "failed"),
    "task": _choice("box", "box+mask", "probe"),
    "dataset": {
        "train": TEXT,
        "test": TEXT,
        "train_fingerprint": _learned(TEXT),
        "test_fingerprint": _learned(TEXT),
        "train_images": _learned(INT),
        "test_images": _learned(INT),
        "classes": _learned(TEXTS),
        "train_share": replace(TEXT, optional=True),
    },
    "config_name": TEXT,
    "config": TEXT,
    "init": {
        "name": TEXT,
        "weights": TEXT.or_null(),
        "sha256": TEXT.or_null(),
        "source": OBJECT.or_null(),
        "verified": OBJECT.or_null(),
        "input": replace(OBJECT.or_null(), optional=True),
    },
    "engine": {
        "name": TEXT,
        "version": _learned(TEXT),
        "torch": _learned(TEXT),
        "torchvision": _learned(TEXT),
    },
    "precision": _learned(_choice("float32", "bfloat16", "float16")),
    "seed": INT,
    "iterations": _learned(INT),
    "batch": _learned(INT),
    "wall_seconds": SECONDS,
    "hardware": {"device": _learned(TEXT), "cores": _learned(INT)},
    "output_dir": FOLDER,
    "command": TEXT,
    "started": TEXT,
    "warnings": TEXTS,
    "metrics": replace(OBJECT.or_null(), optional=True),
}
# One metric's APs ("bbox", "segm" or "voc"), of all classes and of each.
APS: Fields = {
    **dict.fromkeys(AP_KEYS, PERCENT),
    **dict.fromkeys(("APs", "APm", "APl"), replace(PERCENT, optional=True)),
    "per_class": PERCENTS,
}
# What a run's detector costs, in rows written since it is counted: of one image of `image` pixels,
# height and width, the multiply-adds of the backbone with its pyramid, None where not countable.
COST: Fields = {
    "parameters": COUNT,
    "trainable_parameters": Field("a number from 0 on", _number(0, _MOST)),
    "backbone_flops": Field("a number above 0", _number(1, 1e18)).or_null(),
    "image": Field(
        "a height and a width",
        lambda v: isinstance(v, list) and len(v) == 2 and all(map(COUNT.accepts, v)),
    ),
    "images_per_second": Field("a number above 0", _number(1e-9, _MOST)).or_null(),
}
# A probe's row: `iterations` are the steps of the pre-training, null where the weights do not say
# them, `seed` the one that the trial depends on; `config` has the protocol's settings.
PROBE: Fields = {
    "protocol": _choice("knn", "linear", "linear_lbfgs", "finetune"),
    "iterations": INT.or_null(),
}


def validate_row(row: Mapping[str, Any]) -> None:
    """Raise InputError naming the first key of a row that its schema does not allow."""
    if "schema" not in row:
        raise InputError(f"the row has no 'schema'; rows written today say \"schema\": {SCHEMA}")
    schema = row["schema"]
    if isinstance(schema, bool) or schema not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise InputError(
            f"schema {schema!r} is unknown; this version reads schemas {known}, upgrade moco_det"
        )
    _check(row, _schema_of(row), "", unlearned=schema >= 2 and row.get("status") == "failed")


def _schema_of(row: Mapping[str, Any]) -> Fields:
    probe, metrics = row.get("task") == "probe", row.get("metrics")
    fields = {
        **ROW,
        **(PROBE if probe else {}),
        **({"cost": COST} if row.get("cost") is not None else {}),
    }
    if row.get("status") != "finished":
        return {**fields, "error": REASON} if row["schema"] >= 2 else fields
    if probe:
        return {**fields, "metrics": {"probe": dict.fromkeys(ACCURACY_KEYS, PERCENT)}}
    needed = ("bbox", "segm") if row.get("task") == "box+mask" else ("bbox",)
    given = metrics if isinstance(metrics, dict) else {}
    more = [name for name in ("segm", "voc") if given.get(name) is not None]
    return {
        **fields,
        "iterations": COUNT,
        "batch": COUNT,
        "metrics": dict.fromkeys((*needed, *more), APS),
    }


def _check(value: Any, wanted: Any, name: str, *, unlearned: bool) -> None:
    if isinstance(wanted, Field):
        null = value is None and wanted.learned and unlearned
        if not null and not wanted.accepts(value):
            raise InputError(f"'{name}' is {shown(value)}, wanted {wanted.wanted}")
        return
    if not isinstance(value, Mapping):
        raise InputError(f"'{name}' is {shown(value)}, wanted {OBJECT.wanted}")
    for key, inner in wanted.items():
        inside = f"{name}.{key}".lstrip(".")
        if key in value:
            _check(value[key], inner, inside, unlearned=unlearned)
        elif not (isinstance(inner, Field) and inner.optional):
            raise InputError(f"the row lacks '{inside}'; what is undefined is null")


def upgrade(row: dict[str, Any]) -> dict[str, Any]:
    """A validated row of any readable schema as one of today's."""
    if row["schema"] == SCHEMA:
        return row
    newer = {**row, "schema": SCHEMA}
    if row["status"] == "failed" and not row.get("error"):
        newer["error"] = "; ".join(row["warnings"]) or "no reason was recorded"
    return newer


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
