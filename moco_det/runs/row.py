"""What a run says of itself: its row of results.jsonl."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from moco_det.data import DetectionDataset
from moco_det.foundation.launching import cores
from moco_det.results import SCHEMA
from moco_det.weights import containers
from moco_det.weights.backbone import Backbone


def version_of(package: str) -> str:
    """Installed version of a package, or "absent"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def now() -> str:
    """Time of day in UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def describe_init(name: str | None, weights: str, backbone: Backbone | None) -> dict[str, Any]:
    """The ``init`` of a row: ``weights`` are a converted backbone, or a whole detector's file.

    Without a name the arm is called by its weights' method.
    """
    known: dict[str, Any] = dict.fromkeys(("source", "verified", "input"))
    if backbone is not None:
        known = {"source": backbone.source, "verified": backbone.verified, "input": backbone.input}
    if not weights:
        return {"name": name or "random", "weights": None, "sha256": None, **known}
    return {
        "name": name or (known["source"] or {}).get("method") or Path(weights).stem,
        "weights": Path(weights).name,
        "sha256": backbone.sha256 if backbone is not None else sha256_of(weights),
        **known,
    }


def sha256_of(path: str | Path) -> str:
    """sha256 (hex) of a file."""
    with open(path, "rb") as file:
        return containers.sha256_of(file)


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
        **({"train_share": train.share} if train.share else {}),
    }


def describe_hardware(device: str) -> dict[str, Any]:
    """The ``hardware`` of a row; ``device`` is a config's, cpu or cuda."""
    import torch  # report's readers of rows do without

    name = torch.cuda.get_device_name() if device.startswith("cuda") else cpu_name()
    return {"device": name, "cores": cores()}


def cpu_name() -> str:
    """The processor's name where the system tells it."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1).strip() if found else (platform.processor() or platform.machine())


def describe_engine(name: str, version: str, commit: str | None = None) -> dict[str, Any]:
    """The ``engine`` of a row."""
    return {
        "name": name,
        "version": version,
        "torch": version_of("torch"),
        "torchvision": version_of("torchvision"),
        "python": platform.python_version(),
        **({"commit": commit} if commit else {}),
    }


@dataclass(frozen=True)
class RunRow:
    """A run as one row of results.jsonl (`moco_det.results.schema`); failed where it has an error.

    What a failed run never learned is None.
    """

    run: str
    task: str
    dataset: Mapping[str, Any]
    config_name: str
    config: str
    init: Mapping[str, Any]
    engine: Mapping[str, Any]
    precision: str | None
    seed: int
    iterations: int | None  # None where a probe does not know those of its weights
    batch: int
    wall_seconds: float
    hardware: Mapping[str, Any]
    output_dir: str
    command: str
    started: str
    warnings: Sequence[str]
    metrics: Mapping[str, Any] | None = None
    error: str | None = None
    cost: Mapping[str, Any] | None = None  # by moco_det.runs.cost

    def as_dict(self) -> dict[str, Any]:
        """The row as it is written, of today's schema."""
        status, without = ("failed", "metrics") if self.error else ("finished", "error")
        row = {"schema": SCHEMA, "status": status, **asdict(self)}
        del row[without]
        if self.cost is None:
            del row["cost"]
        return row


def relative(path: Path, start: Path) -> str:
    """A run's folder as its results file names it: relative where that is possible."""
    try:
        return path.resolve().relative_to(start.resolve()).as_posix() or "."
    except ValueError:
        return str(path.resolve())
