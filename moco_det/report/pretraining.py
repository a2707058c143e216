"""Pre-training runs beside the results: their curves, and whether their encoders learned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from moco_det.foundation.errors import InputError
from moco_det.report.charts import COLOURS, Figure, line_chart
from moco_det.report.curves import MAX_POINTS, Points, arm_curve, read_metrics
from moco_det.report.formats import number
from moco_det.report.groups import Group
from moco_det.report.verdict import Sentence

_QUANTITIES: tuple[tuple[str, str, int], ...] = (  # key, name, digits
    ("loss", "loss", 3),
    ("accuracy", "accuracy", 1),
    ("knn_accuracy", "kNN accuracy", 1),
)
_RANDOM, _MARGIN = "knn_random", "knn_margin"


@dataclass(frozen=True)
class PretrainingRun:
    """One folder of tools/pretrain.py; `nothing_learned` is empty where kNN says otherwise."""

    folder: Path
    figures: list[Figure]
    warnings: list[str]
    nothing_learned: str

    def made(self, group: Group) -> list[str]:
        """The arms whose weights were converted from this run's checkpoint."""
        if self._sha256 is None:
            return []
        sources = ((arm.label, arm.rows[0].data["init"]["source"] or {}) for arm in group.arms)
        return [label for label, source in sources if source.get("sha256") == self._sha256]

    @cached_property
    def _sha256(self) -> str | None:
        """Of the checkpoint; None where it has been moved: the section alone speaks of the run."""
        digest = hashlib.sha256()
        try:
            with open(self.folder / "checkpoint.pth", "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError:
            return None
        return digest.hexdigest()


def read_run(folder: Path, colours: Mapping[str, int]) -> PretrainingRun:
    """Raises InputError where the folder holds no log with a loss."""
    log = read_metrics(
        folder / "metrics.jsonl", [*(key for key, _, _ in _QUANTITIES), _RANDOM, _MARGIN]
    )
    if log is None:
        raise InputError(
            f"{folder} holds no metrics.jsonl; name a folder that tools/pretrain.py wrote"
        )
    figures = []
    for key, title, digits in _QUANTITIES:
        if key in log:
            figures.append(_figure(folder.name, log, key, title, digits, colours))
    if not figures:
        raise InputError(f"{folder / 'metrics.jsonl'} has no line with a finite 'loss'")
    return PretrainingRun(
        folder=folder,
        figures=figures,
        warnings=_warnings(folder),
        nothing_learned=_nothing_learned(log),
    )


def learning_sentences(group: Group, runs: Sequence[PretrainingRun]) -> list[Sentence]:
    """What the verdict says of arms whose encoder ended no better than random weights."""
    return [
        Sentence(
            f": {run.nothing_learned}, so its AP does not speak for its method.",
            f"{label} learned nothing in pre-training that kNN can see",
        )
        for run in runs
        if run.nothing_learned
        for label in run.made(group)
    ]


def _figure(
    name: str,
    log: Mapping[str, Points],
    key: str,
    title: str,
    digits: int,
    colours: Mapping[str, int],
) -> Figure:
    curve = arm_curve(name, [log[key]])
    assert curve is not None
    last = log[key][-1]
    unit = "" if key == "loss" else " %"
    caption = (
        f"Pre-training {name}, n=1: {title} against iteration, "
        f"{number(last[1], digits)}{unit} at iteration {last[0]:,.0f}."
    )
    level = None
    if key == "knn_accuracy" and _RANDOM in log:
        random = log[_RANDOM][-1][1]
        level = ("random weights", random)
        caption += f" The same network's random weights (dashed): {number(random, digits)}{unit}."
    if len(log[key]) > MAX_POINTS:
        caption += f" {MAX_POINTS} points are drawn, each the mean of its neighbours."
    if key == "loss":
        caption += " Losses of different methods do not compare."
    svg = line_chart(
        [(curve, colours.get(name, COLOURS - 1))],
        title=f"Pre-training {title} of {name}",
        x_label="iteration",
        y_label=title if key == "loss" else f"{title}, percent",
        dots=key == "knn_accuracy",
        level=level,
    )
    return Figure(f"{name}: {title}", svg, caption)


def _nothing_learned(log: Mapping[str, Points]) -> str:
    """The end's kNN accuracy against that of random weights, where it is no better."""
    if not all(key in log for key in ("loss", "knn_accuracy", _RANDOM, _MARGIN)):
        return ""
    if log["knn_accuracy"][-1][0] < log["loss"][-1][0]:  # the run is not at its end
        return ""
    accuracy, random, margin = (log[key][-1][1] for key in ("knn_accuracy", _RANDOM, _MARGIN))
    if accuracy - random > margin:
        return ""
    return (
        f"its encoder ended at a kNN accuracy of {accuracy:.1f} % and its random weights have "
        f"{random:.1f} % (up to {margin:.1f} points either way are chance)"
    )


def _warnings(folder: Path) -> list[str]:
    """What the run itself warned of, with the iteration."""
    found: dict[str, None] = {}
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(entry.get("warning"), str):
            found[f"{folder.name}, iteration {entry.get('iteration')}: {entry['warning']}"] = None
    return list(found)
