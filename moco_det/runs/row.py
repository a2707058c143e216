"""What a detection run says of itself: the row that goes into results.jsonl, for every engine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from moco_det.data import DetectionDataset, check_classes, check_images, load_datasets
from moco_det.foundation.errors import InputError
from moco_det.results import SCHEMA
from moco_det.weights import Backbone

# Up to this many images every one is opened before training; above, that would take too long.
CHECK_LIMIT = 5000


def version_of(package: str) -> str:
    """Installed version of a package, or "absent"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def now() -> str:
    """Time of day in UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def describe_init(
    name: str | None, weights: str, backbone: Backbone | None, sha256: str | None
) -> dict[str, Any]:
    """The ``init`` of a row. Without a name the arm is called by its weights' method."""
    if not weights:
        return {
            "name": name or "random",
            "weights": None,
            "sha256": None,
            "source": None,
            "verified": None,
            "input": None,
        }
    source = dict(backbone.source) if backbone is not None and backbone.source else None
    verified = dict(backbone.verified) if backbone is not None and backbone.verified else None
    method = (source or {}).get("method")
    return {
        "name": name or method or Path(weights).stem,
        "weights": Path(weights).name,
        "sha256": backbone.sha256 if backbone is not None else sha256,
        "source": source,
        "verified": verified,
        "input": dict(backbone.input) if backbone is not None and backbone.input else None,
    }


def sha256_of(path: str | Path) -> str:
    """sha256 (hex) of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def describe_data(train: DetectionDataset, test: DetectionDataset) -> dict[str, Any]:
    """The ``dataset`` of a row."""
    return {
        "train": train.name,
        "test": test.name,
        "train_uri": train.uri,
        "test_uri": test.uri,
        "train_fingerprint": train.fingerprint,
        "test_fingerprint": test.fingerprint,
        "train_images": len(train),
        "test_images": len(test),
        "classes": list(train.classes),
    }


def describe_hardware(device: str) -> dict[str, Any]:
    """The ``hardware`` of a row."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"device": device, "cores": int(cores or 1)}


def cpu_name() -> str:
    """The processor's name where the system tells it."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1).strip() if found else (platform.processor() or platform.machine())


def describe_engine(name: str, version: str) -> dict[str, Any]:
    """The ``engine`` of a row."""
    return {
        "name": name,
        "version": version,
        "torch": version_of("torch"),
        "torchvision": version_of("torchvision"),
        "python": platform.python_version(),
    }


def make_row(
    *,
    run: str,
    status: str,
    with_masks: bool,
    dataset: Mapping[str, Any],
    config_name: str,
    config: str,
    init: Mapping[str, Any],
    engine: Mapping[str, Any],
    precision: str,
    seed: int,
    iterations: int,
    batch: int,
    wall_seconds: float,
    hardware: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
    output_dir: str,
    command: str,
    started: str,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """One row of results.jsonl, of today's schema."""
    row: dict[str, Any] = {
        "schema": SCHEMA,
        "run": run,
        "status": status,
        "task": "box+mask" if with_masks else "box",
        "dataset": dict(dataset),
        "config_name": config_name,
        "config": config,
        "init": dict(init),
        "engine": dict(engine),
        "precision": precision,
        "seed": seed,
        "iterations": iterations,
        "batch": batch,
        "wall_seconds": round(wall_seconds, 3),
        "hardware": dict(hardware),
        "output_dir": output_dir,
        "command": command,
        "started": started,
        "warnings": list(warnings),
    }
    if metrics is not None:
        row["metrics"] = dict(metrics)
    return row


def load_pair(
    *,
    train: Sequence[str],
    test: Sequence[str],
    num_classes: int,
    with_masks: bool,
    strict: bool,
    progress: bool,
) -> tuple[DetectionDataset, DetectionDataset]:
    """The training and test sets of a config, checked against each other and the config.

    Images that do not open are left out and counted, or under ``strict`` an InputError.
    """
    train_set = load_datasets(train)
    test_set = load_datasets(test, classes=train_set.classes)
    check_classes(train_set, test_set)
    check_classes_of_config(num_classes, train_set)
    pair = []
    for part in (train_set, test_set):
        if with_masks and not part.has_masks:
            raise InputError(f"MODEL.MASK_ON is True, but {part.name} has no masks: set it False")
        if len(part) <= CHECK_LIMIT:
            part = check_images(part, strict=strict, progress=progress)
        pair.append(part)
    return pair[0], pair[1]


def overlap_warnings(train: DetectionDataset, test: DetectionDataset) -> list[str]:
    """A line where images are both trained and tested on: their AP says nothing of transfer."""
    shared = {r.file_name for r in train.records} & {r.file_name for r in test.records}
    if not shared:
        return []
    return [f"{len(shared)} of {len(test)} test images are training images too"]


def relative(path: Path, start: Path) -> str:
    """A run's folder as its results file names it: relative where that is possible."""
    try:
        return path.resolve().relative_to(start.resolve()).as_posix() or "."
    except ValueError:
        return str(path.resolve())


def check_classes_of_config(num_classes: int, dataset: DetectionDataset) -> None:
    """InputError unless MODEL.ROI_HEADS.NUM_CLASSES is what the data has."""
    if num_classes != len(dataset.classes):
        names = ", ".join(dataset.classes[:8]) + (", ..." if len(dataset.classes) > 8 else "")
        raise InputError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}, but {dataset.name} has "
            f"{len(dataset.classes)} classes ({names}): set it to {len(dataset.classes)}"
        )


def summary(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics as text lines, one ruler a line."""
    lines = []
    for ruler, table in metrics.items():
        cells = [
            f"{key} {value:.2f}" if value is not None else f"{key} -"
            for key, value in table.items()
            if key != "per_class" and (value is None or isinstance(value, (int, float)))
        ]
        lines.append(f"{ruler}: " + "  ".join(cells))
    return lines
