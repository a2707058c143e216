"""The row of a run that could not write one itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from moco_det.results import SCHEMA
from moco_det.runs.row import describe_engine, now, relative
from moco_det.runs.suites.matrix import Run

# Of a console that may hold a night's progress bars, the end is enough.
_TAIL_BYTES = 65536


def last_words(console: Path, code: int, *, start: int = 0) -> str:
    """Why a run ended, in a line: its error message, else its last line, else how it ended.

    The console holds every attempt at the run; `start` is the byte where this one began.
    """
    ended = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    try:
        with console.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(start, file.tell() - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ended
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    for line in reversed(lines):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    if code == 0:
        return f"no row was written: {lines[-1]}" if lines else "no row was written"
    return f"{ended}: {lines[-1][:500]}" if lines else ended


def failed_row(run: Run, output: Path, why: str, seconds: float) -> dict[str, Any]:
    """A failed row; what only the run could have learned is null."""
    keys = run.setting.keys
    known = run.engine == "standalone"
    engine = describe_engine(run.engine, run.version)
    return {
        "schema": SCHEMA,
        "run": run.name,
        "status": "failed",
        "task": "box+mask" if keys.get("MODEL.MASK_ON") else "box",
        "dataset": {
            "train": _names(keys.get("DATASETS.TRAIN")),
            "test": _names(keys.get("DATASETS.TEST")),
            "train_fingerprint": None,
            "test_fingerprint": None,
            "train_images": None,
            "test_images": None,
            "classes": None,
        },
        "config_name": run.setting.name,
        "config": run.setting.text,
        "init": {
            "name": run.arm.name,
            "weights": run.arm.weights.name if run.arm.weights else None,
            "sha256": run.arm.sha256,
            "source": None,
            "verified": None,
        },
        "engine": engine if known else {**engine, "version": run.version or None},
        "precision": None,
        "seed": run.seed,
        "iterations": run.setting.iterations,
        "batch": run.setting.batch,
        "wall_seconds": round(seconds, 3),
        "hardware": {"device": None, "cores": None},
        "output_dir": relative(run.folder(output), output),
        "command": "train_net.py " + " ".join(run.options(output)),
        "started": now(),
        "warnings": [],
        "error": why,
    }


def _names(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "+".join(map(str, value))
    return str(value or "")
