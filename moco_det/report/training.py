"""Curves over iterations: what the runs and the pre-trainings left in their metrics.jsonl."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeGuard

from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import MOST_DATA, read_regular
from moco_det.report.charts import COLOURS, SPIKE, Line, Points, line_chart
from moco_det.report.document import Block, Figure, Figures, Fold, Sentence, Text, text
from moco_det.report.formats import counted
from moco_det.report.groups import Group
from moco_det.report.sentences import say, sentence
from moco_det.results import Row

# More points than this cannot be told apart in a chart; neighbours are then averaged.
MAX_POINTS = 120
LARGEST = 1e100  # number of a curve: sums of more overflow
# Curves are drawn for the first settings only: the file must stay small enough to send.
CURVE_SETTINGS, PART_SETTINGS = 6, 1
# With more lines than this the seeds of a curve are left to their mean.
SEED_LINES = 30

# key in a run's log, title, name of the axis
_CURVES = (
    ("total_loss", "Training loss", "total loss"),
    ("bbox/AP", "Box AP", "box AP, percent"),
    ("segm/AP", "Mask AP", "mask AP, percent"),
)
_PARTS = ("loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc")

# key in a pre-training's log -> digits
_QUANTITIES = {"loss": 3, "accuracy": 1, "knn_accuracy": 1}
_RANDOM, _MARGIN = "knn_random", "knn_margin"
# Until a queue is filled the loss means nothing; it is then looked at in so many parts of the run.
_START, _PARTS_OF_RUN = 100, 5
# Shares of the chance loss: a rise of so much is no noise; an end so close to it is near.
_RISE, _NEAR = 0.05, 0.1

Log = Sequence[Mapping[str, Any]]


def read_log(path: Path) -> Log | None:
    """The entries of a metrics.jsonl that name an iteration, None where the file is missing.

    Lines that are not json (a run was killed while writing) are left out.
    """
    try:
        lines = read_regular(path, MOST_DATA).decode(errors="replace").splitlines()
    except OSError:
        return None
    entries = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and _is_number(entry.get("iteration")):
                entries.append(entry)
    return entries


def series(log: Log, name: str) -> Points:
    """(iteration, value) of what is a finite number; of an iteration logged twice the last."""
    points = {
        float(entry["iteration"]): float(entry[name])
        for entry in log
        if _is_number(entry.get(name))
    }
    return sorted(points.items())


def mean_line(label: str, colour: int, seeds: Iterable[Points]) -> Line:
    """Thin and average the seeds' curves; a seed without points is none.

    The mean is drawn only where every seed has a value, so that it never jumps because a seed
    ends or starts.
    """
    thinned = thin([points for points in seeds if points])
    by_iteration: dict[float, list[float]] = {}
    for x, y in (point for points in thinned for point in points):
        by_iteration.setdefault(x, []).append(y)
    shared = sorted((x, ys) for x, ys in by_iteration.items() if len(ys) == len(thinned))
    return Line(label, colour, [(x, fmean(ys)) for x, ys in shared], seeds=thinned)


def thin(curves: Sequence[Points], limit: int = MAX_POINTS) -> list[Points]:
    """Average neighbours over common windows of iterations where a curve has too many points."""
    if max(map(len, curves), default=0) <= limit:
        return list(curves)
    low = min(points[0][0] for points in curves)
    width = (max(points[-1][0] for points in curves) - low) / limit
    thinned: list[Points] = []
    for points in curves:
        windows: dict[int, list[float]] = {}
        for x, y in points:
            windows.setdefault(min(int((x - low) / width), limit - 1), []).append(y)
        thinned.append([(low + (i + 0.5) * width, fmean(ys)) for i, ys in sorted(windows.items())])
    return thinned


def _is_number(value: Any) -> TypeGuard[float]:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return known and abs(value) <= LARGEST


def _log_of(row: Row) -> Log | None:
    try:
        return read_log(row.file("metrics.jsonl"))
    except InputError:
        return None


def curve_blocks(group: Group) -> list[Block]:
    """Losses and APs of a setting's runs against the iteration, and what is missing."""
    if group.index >= CURVE_SETTINGS:
        return [text(f"Curves are drawn for the first {CURVE_SETTINGS} settings.")]
    logs = [[_log_of(row) for row in arm.rows] for arm in group.arms]

    def figures(wanted: Iterable[tuple[str, str, str]]) -> list[Figure]:
        found = []
        for key, title, y_label in wanted:
            lines = [
                mean_line(arm.label, arm.colour, [series(log, key) for log in own if log])
                for arm, own in zip(group.arms, logs, strict=True)
            ]
            if any(len(line.points) > 1 for line in lines):  # one evaluation is no curve
                found.append(_curve(group, lines, key, title, y_label))
        return found

    main = figures(_CURVES)
    parts = figures((key, key, key) for key in _PARTS) if group.index < PART_SETTINGS else []
    if not main and not parts:
        return [text("No run folder holds a metrics.jsonl with values, so no curves are drawn.")]
    legend = [(arm.label, arm.colour) for arm in group.arms]
    blocks: list[Block] = [Figures(main, legend)] if main else []
    if parts:
        blocks.append(Fold("The loss's parts", [Figures(parts, legend)]))
    if missing := sum(log is None for own in logs for log in own):
        blocks.append(text(f"metrics.jsonl is missing for {counted(missing, 'run')}."))
    return blocks


def _curve(group: Group, lines: Sequence[Line], key: str, title: str, y_label: str) -> Figure:
    when = "at each evaluation" if "AP" in key else "against iteration"
    how = "thin: each seed, thick: their mean"
    trials = ", ".join(f"{line.label} n={len(line.seeds)}" for line in lines if line.seeds)
    if sum(len(line.seeds) for line in lines) > SEED_LINES:
        how = "the mean of the seeds"
        lines = [Line(line.label, line.colour, line.points) for line in lines]
    svg = line_chart(lines, f"{title} against iteration", y_label, dots="AP" in key)
    facts = {"title": title, "when": when, "how": how, "trials": trials}
    name, spike = group.data["config_name"], SPIKE if "loss" in key else 0
    return Figure(title, svg, say("curve", config_name=name, spike=spike, **facts))


class PretrainingRun(NamedTuple):
    """One output folder of pre-training; `nothing_learned` is empty where kNN says otherwise."""

    folder: Path
    figures: list[Figure]
    warnings: list[str]
    nothing_learned: Mapping[str, float]


def read_pretraining(folder: Path, colours: Mapping[str, int]) -> PretrainingRun:
    """Raises InputError where the folder holds no log with a loss."""
    log = read_log(folder / "metrics.jsonl")
    if log is None:
        raise InputError(f"{folder} holds no metrics.jsonl: name an output folder of pre-training")
    colour = colours.get(folder.name, COLOURS - 1)
    figures = [
        _pretraining_figure(folder.name, colour, log, key, digits)
        for key, digits in _QUANTITIES.items()
        if series(log, key)
    ]
    if not figures:
        raise InputError(f"{folder / 'metrics.jsonl'} has no line with a finite 'loss'")
    said = {
        f"{folder.name}, iteration {entry['iteration']}: {entry['warning']}": None
        for entry in log
        if isinstance(entry.get("warning"), str)
    }
    warnings = [*said, *(f"{folder.name}: {one}" for one in _loss_warnings(log))]
    return PretrainingRun(folder, figures, warnings, _nothing_learned(log))


def _loss_warnings(log: Log) -> list[str]:
    """That the loss rose, or ended near that of an encoder that knows nothing."""
    loss, chances = series(log, "loss"), series(log, "chance_loss")
    values = [y for x, y in loss if x > max(_START, loss[-1][0] / 10)]
    if not chances or len(values) < _PARTS_OF_RUN:
        return []
    size, chance = len(values) // _PARTS_OF_RUN, chances[-1][1]
    means = [fmean(values[i - size : i]) for i in range(len(values), size - 1, -size)]
    end, least = means[0], min(means)
    facts = {"chance": chance, "end": end, "iteration": int(loss[-1][0])}
    rose = [say("loss_rose", least=least, **facts)] if end - least > _RISE * chance else []
    return [*rose, say("near_chance", **facts)] if end > (1 - _NEAR) * chance else rose


def pretraining_blocks(runs: Sequence[PretrainingRun]) -> list[Block]:
    """What the runs warned of, and their curves."""
    figures = [figure for run in runs for figure in run.figures]
    warnings = [f" {warning}." for run in runs for warning in run.warnings]
    blocks: list[Block] = [Text([Sentence(one, "Warning:")], "notice") for one in warnings]
    return [*blocks, Figures(figures, captions=True)] if figures else []


def learning_sentences(group: Group, runs: Sequence[PretrainingRun]) -> list[Sentence]:
    """What the verdict says of arms whose encoder ended no better than random weights."""
    said = []
    for run in (run for run in runs if run.nothing_learned):
        try:
            checkpoint = read_regular(run.folder / "checkpoint.pth", MOST_DATA)
        except OSError:  # moved: the section alone speaks of the run
            continue
        sha256 = hashlib.sha256(checkpoint).hexdigest()
        arms = [arm.label for arm in group.arms if arm.source.get("sha256") == sha256]
        said += [sentence("nothing_learned", arm=arm, **run.nothing_learned) for arm in arms]
    return said


def _pretraining_figure(name: str, colour: int, log: Log, key: str, digits: int) -> Figure:
    title = key.replace("knn_", "kNN ")
    points, unit = series(log, key), "" if key == "loss" else " %"
    at_random = series(log, _RANDOM) if key == "knn_accuracy" else []
    random = at_random[-1][1] if at_random else None
    chart, y_label = f"Pre-training {title} of {name}", f"{title}, percent" if unit else title
    level = None if random is None else ("random weights", random)
    line = mean_line(name, colour, [points])
    svg = line_chart([line], chart, y_label, dots=key == "knn_accuracy", level=level)
    facts = {"run": name, "title": title, "unit": unit, "digits": digits, "most": MAX_POINTS}
    caption = say("pretraining", points=points, random=random, **facts)
    return Figure(f"{name}: {title}", svg, caption)


def _nothing_learned(log: Log) -> dict[str, float]:
    """The end's kNN accuracy, that of random weights and its margin, where it is no better."""
    loss, *knn = (series(log, key) for key in ("loss", "knn_accuracy", _RANDOM, _MARGIN))
    if not loss or not all(knn) or knn[0][-1][0] < loss[-1][0]:  # the run is not at its end
        return {}
    accuracy, random, margin = (points[-1][1] for points in knn)
    if accuracy - random > margin:
        return {}
    return {"accuracy": accuracy, "random": random, "margin": margin}
