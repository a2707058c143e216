"""Settings that differ in their schedule alone, or their labelled images, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from moco_det.report.charts import Line, Span, line_chart
from moco_det.report.document import Block, Cell, Figure, Figures, Heading, Table
from moco_det.report.formats import METRICS, UNDEFINED, capital, short_name
from moco_det.report.groups import Group, setting_key
from moco_det.report.sentences import say
from moco_det.report.tables import arm_cell, value_cell

# What a schedule consists of; everything else must be the same.
SCHEDULE = (
    "iterations",
    "SOLVER.MAX_ITER",
    "SOLVER.STEPS",
    "SOLVER.WARMUP_ITERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
)


class FamilyAxis(NamedTuple):
    """The one thing in which a family's settings differ, and what is said of it.

    `free` are the facts and config keys that may differ, `size` is what the settings are ordered
    by, `column` the name of a setting beside the smallest. Shown are APs, or the `gains` over
    supervised of the same setting. `sentence` is the caption of the table, and with "_chart" that
    of the chart.
    """

    free: Sequence[str]
    size: Callable[[Group], int]
    column: Callable[[Group, Group], str]
    x_label: str
    title: str
    sentence: str
    gains: bool = False


BY_SCHEDULE = FamilyAxis(
    free=SCHEDULE,
    size=lambda group: group.data["iterations"],
    column=lambda group, shortest: (
        f"{group.data['iterations'] / shortest.data['iterations']:.3g}x "
        f"({group.data['iterations']:,})"
    ),
    x_label="iterations",
    title="Gain in {} over supervised by schedule",
    sentence="gain_by_schedule",
    gains=True,
)
BY_LABELS = FamilyAxis(
    free=("training data", "DATASETS.TRAIN"),
    size=lambda group: group.data["dataset"]["train_images"],
    column=lambda group, _: f"{group.data['dataset']['train_images']:,} images",
    x_label="labelled images",
    title="{} by labelled images",
    sentence="ap_by_labels",
)


def blocks(groups: Sequence[Group], axis: FamilyAxis) -> list[Block]:
    """Tables and charts of every family of two settings or more along the axis."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        key = setting_key(group.arms[0].rows[0], without=axis.free)
        found.setdefault(key, []).append(group)
    return [
        block
        for family in found.values()
        if len(set(map(axis.size, family))) > 1
        for block in _family(sorted(family, key=axis.size), axis)
    ]


def _family(groups: Sequence[Group], axis: FamilyAxis) -> list[Block]:
    data = groups[0].data
    shared = [data["task"], data["engine"]["name"], data["precision"]]
    metrics = [m for m in groups[0].metrics if all(m in group.metrics for group in groups)]
    compared = [_compared(groups, metric, axis) for metric in metrics]
    legend = {arm.label: arm.colour for group in groups for arm in group.arms}
    drawn = [figure for _, figure in compared if figure.svg]
    return [
        Heading(short_name(data["dataset"]["test"]), " · ".join(shared)),
        *(table for table, _ in compared),
        *([Figures(drawn, list(legend.items()))] if drawn else []),
    ]


def _compared(groups: Sequence[Group], metric: str, axis: FamilyAxis) -> tuple[Table, Figure]:
    """The arms of a family, one column and one point per setting."""
    names = [axis.column(group, groups[0]) for group in groups]
    sizes = [axis.size(group) for group in groups]
    rows, lines = [], []
    for label, arm in {arm.label: arm for group in groups for arm in group.arms}.items():
        found = [_measured(group, label, metric, axis) for group in groups]
        rows.append([arm_cell(arm), *(cell for cell, _, _ in found)])
        at = [(x, y, span) for x, (_, y, span) in zip(sizes, found, strict=True) if y is not None]
        if len(at) > axis.gains:  # one gain is no line
            points, spans = [(x, y) for x, y, _ in at], [span for _, _, span in at]
            lines.append(Line(label, arm.colour, points, spans=spans))
    trials = [
        f"{name} n=" + "/".join(str(arm.trials(metric).n) for arm in group.arms)
        for name, group in zip(names, groups, strict=True)
    ]
    what = METRICS[metric]
    title, y_label = capital(axis.title.format(what)), f"gain in {what}" if axis.gains else what
    svg = line_chart(lines, title, y_label, axis.x_label, dots=True, level=("", 0.0))
    table = Table(say(axis.sentence, what=what, trials=trials), ("arm", *names), rows)
    return table, Figure(title, svg, say(f"{axis.sentence}_chart", what=what))


def _measured(
    group: Group, label: str, metric: str, axis: FamilyAxis
) -> tuple[Cell, float | None, Span | None]:
    """An arm's cell, and its point with the interval: of its gain, or one deviation each side."""
    for arm in (arm for arm in group.arms if arm.label == label):
        trials = arm.trials(metric)
        if not axis.gains:
            return value_cell(trials, counted=True), trials.mean, trials.band
        gap = group.against(arm, group.supervised, metric)
        point = (None, None) if gap is None else (gap.difference, gap.interval)
        return value_cell(trials, gap, counted=True), *point
    return Cell(UNDEFINED, "not run"), None, None
