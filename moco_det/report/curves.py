"""Curves over iterations, read from the metrics.jsonl that each run leaves in its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

Points = list[tuple[float, float]]

# More points than this cannot be told apart in a chart; neighbours are then averaged.
MAX_POINTS = 120


@dataclass(frozen=True)
class ArmCurve:
    """One arm's curves of one quantity: a thin line a seed, and their mean."""

    label: str
    seeds: tuple[Points, ...]
    mean: Points


def read_metrics(path: Path, wanted: Collection[str]) -> dict[str, Points] | None:
    """{quantity: [(iteration, value)]} of the wanted ones, None where the file is missing.

    Lines that are not json (a run was killed while writing) and values that are not finite
    numbers are left out. Of an iteration logged twice (a resumed run) the last one counts.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    series: dict[str, dict[float, float]] = {}
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(entry, dict) or not _is_number(entry.get("iteration")):
            continue
        at = float(entry["iteration"])
        for name in wanted:
            value = entry.get(name)
            if _is_number(value):
                series.setdefault(name, {})[at] = float(value)
    return {name: sorted(points.items()) for name, points in series.items()}


def arm_curve(label: str, seeds: Sequence[Points]) -> ArmCurve | None:
    """Thin and average the seeds' curves; None where no seed has a point.

    The mean is drawn only where every seed has a value, so that it never jumps because a seed
    ends or starts.
    """
    present = [points for points in seeds if points]
    if not present:
        return None
    thinned = thin(present)
    by_iteration: dict[float, list[float]] = {}
    for points in thinned:
        for x, y in points:
            by_iteration.setdefault(x, []).append(y)
    mean = [
        (x, _mean(values))
        for x, values in sorted(by_iteration.items())
        if len(values) == len(thinned)
    ]
    return ArmCurve(label=label, seeds=tuple(thinned), mean=mean)


def thin(curves: Sequence[Points], limit: int = MAX_POINTS) -> list[Points]:
    """Average neighbours over common windows of iterations where a curve has too many points."""
    if max(len(points) for points in curves) <= limit:
        return [list(points) for points in curves]
    low = min(points[0][0] for points in curves)
    high = max(points[-1][0] for points in curves)
    width = (high - low) / limit
    thinned = []
    for points in curves:
        windows: dict[int, list[float]] = {}
        for x, y in points:
            windows.setdefault(min(int((x - low) / width), limit - 1), []).append(y)
        thinned.append([(low + (i + 0.5) * width, _mean(ys)) for i, ys in sorted(windows.items())])
    return thinned


def _mean(values: Sequence[float]) -> float:
    # A numpy array for each of ten thousand short lists would take most of a report's time.
    return math.fsum(values) / len(values)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
