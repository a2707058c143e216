"""Settings that differ in their schedule alone, or their labelled images, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moco_det.report.charts import Line, Span, size_chart
from moco_det.report.document import Block, Cell, Figure, Figures, Heading, Table
from moco_det.report.formats import METRICS, UNDEFINED, capital, listed
from moco_det.report.groups import ArmRuns, Group, setting_key, short_name
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


@dataclass(frozen=True)
class Axis:
    """The one thing in which a family's settings differ, and what is said of it.

    `free` are the facts and config keys that may differ, `size` is what the settings are ordered
    by, `column` the name of a setting beside the smallest. Shown are APs, or the `gains` over
    supervised of the same setting.
    """

    free: Sequence[str]
    size: Callable[[Group], int]
    column: Callable[[Group, Group], str]
    x_label: str
    table: str
    title: str
    caption: str
    gains: bool = False


BY_SCHEDULE = Axis(
    free=SCHEDULE,
    size=lambda group: group.data["iterations"],
    column=lambda group, shortest: (
        f"{group.data['iterations'] / shortest.data['iterations']:.3g}x "
        f"({group.data['iterations']:,})"
    ),
    x_label="iterations",
    table="by schedule: mean ± sample standard deviation, under it the gain over supervised of "
    "the same schedule with Welch's 95 % interval, in colour where it is beyond noise. Schedules "
    "are multiples of the shortest, iterations in brackets",
    title="Gain in {} over supervised by schedule",
    caption="Gain in {} over supervised of the same schedule, with Welch's 95 % intervals where "
    "the trials allow one; above the line an arm is better.",
    gains=True,
)
BY_LABELS = Axis(
    free=("training data", "DATASETS.TRAIN"),
    size=lambda group: group.data["dataset"]["train_images"],
    column=lambda group, _: f"{group.data['dataset']['train_images']:,} images",
    x_label="labelled images",
    table="by the number of labelled training images: mean ± sample standard deviation",
    title="{} by labelled images",
    caption="{} against the number of labelled images, one line per arm, with one sample standard "
    "deviation to each side.",
)


def family_blocks(groups: Sequence[Group], axis: Axis) -> list[Block]:
    """Tables and charts of every family of two settings or more along the axis."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        key = setting_key(group.arms[0].rows[0], without=axis.free)
        found.setdefault(key, []).append(group)
    blocks: list[Block] = []
    for family in found.values():
        if len({axis.size(group) for group in family}) > 1:
            blocks += _family(sorted(family, key=axis.size), axis)
    return blocks


def _family(groups: Sequence[Group], axis: Axis) -> list[Block]:
    data = groups[0].data
    shared = [data["task"], data["engine"]["name"], data["precision"]]
    metrics = [metric for metric in METRICS if all(group.has(metric) for group in groups)]
    arms = {arm.label: arm for group in groups for arm in group.arms}
    figures = [_figure(groups, arms, metric, axis) for metric in metrics]
    drawn = [figure for figure in figures if figure.svg]
    charts = [Figures(drawn, [(arm.label, arm.colour) for arm in arms.values()])] if drawn else []
    return [
        Heading(short_name(data["dataset"]["test"]), " · ".join(shared)),
        *(_table(groups, arms, metric, axis) for metric in metrics),
        *charts,
    ]


def _table(groups: Sequence[Group], arms: dict[str, ArmRuns], metric: str, axis: Axis) -> Table:
    names = [axis.column(group, groups[0]) for group in groups]
    rows = []
    for label, arm in arms.items():
        row = [arm_cell(arm)]
        for group in groups:
            cell = Cell(UNDEFINED, "not run")
            for own in (own for own in group.arms if own.label == label):
                gap = group.against(own, group.supervised, metric) if axis.gains else None
                cell = value_cell(own.trials(metric), gap, counted=True)
            row.append(cell)
        rows.append(row)
    trials = [
        f"{name} n=" + "/".join(str(arm.trials(metric).n) for arm in group.arms)
        for name, group in zip(names, groups, strict=True)
    ]
    caption = f"{capital(METRICS[metric])} {axis.table}; {listed(trials)}."
    return Table(caption, ("arm", *names), rows)


def _figure(groups: Sequence[Group], arms: dict[str, ArmRuns], metric: str, axis: Axis) -> Figure:
    lines = []
    for label, arm in arms.items():
        points: list[tuple[float, float]] = []
        spans: list[Span | None] = []
        for group in groups:
            for own in (own for own in group.arms if own.label == label):
                value, span = _point(group, own, metric, axis)
                if value is not None:
                    points.append((axis.size(group), value))
                    spans.append(span)
        if len(points) > axis.gains:  # one gain is no line
            lines.append(Line(label, arm.colour, points, spans=spans))
    name = METRICS[metric]
    title = capital(axis.title.format(name))
    y_label, sign = (f"gain in {name}", "+") if axis.gains else (name, "")
    svg = size_chart(lines, title=title, x_label=axis.x_label, y_label=y_label, sign=sign)
    return Figure(title, svg, capital(axis.caption.format(name)))


def _point(group: Group, arm: ArmRuns, metric: str, axis: Axis) -> tuple[float | None, Span | None]:
    """A gain and its interval, or a mean with one deviation to each side."""
    if axis.gains:
        gap = group.against(arm, group.supervised, metric)
        return (None, None) if gap is None else (gap.difference, gap.interval)
    trials = arm.trials(metric)
    return trials.mean, trials.band
