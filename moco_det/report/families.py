"""Settings that differ in their schedule alone, or their labelled images, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moco_det.report.charts import Line, Span, size_chart
from moco_det.report.document import Block, Cell, Figure, Figures, Heading, Table
from moco_det.report.formats import METRICS, UNDEFINED, capital, listed, mean_std
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
LABELS = ("training data", "DATASETS.TRAIN")


@dataclass(frozen=True)
class Axis:
    """The one thing in which a family's settings differ, and what is shown of it.

    `free` are the facts and config keys that may differ, `size` is what the settings are ordered
    by, `column` the name of a setting beside the smallest. A chart shows each `point`: a value and
    its interval, nothing for an arm that has none.
    """

    free: Sequence[str]
    size: Callable[[Group], int]
    column: Callable[[Group, Group], str]
    cell: Callable[[Group, ArmRuns, str], Cell]
    point: Callable[[Group, ArmRuns, str], tuple[float, Span | None] | None]
    x_label: str
    table_caption: str
    chart_title: str
    chart_caption: str
    gains: bool = False


def _schedule_name(group: Group, shortest: Group) -> str:
    """ "2x (180,000)": how often the shortest schedule fits, and the iterations."""
    steps = group.data["iterations"]
    return f"{steps / shortest.data['iterations']:.3g}x ({steps:,})"


def _gain_cell(group: Group, arm: ArmRuns, metric: str) -> Cell:
    trials, gap = arm.trials(metric), group.against(arm, group.supervised, metric)
    return value_cell(mean_std(trials), gap, f"n={trials.n}")


def _gain(group: Group, arm: ArmRuns, metric: str) -> tuple[float, Span | None] | None:
    gap = group.against(arm, group.supervised, metric)
    return None if gap is None or gap.difference is None else (gap.difference, gap.interval)


def _value_cell(group: Group, arm: ArmRuns, metric: str) -> Cell:
    trials = arm.trials(metric)
    return Cell(mean_std(trials), f"n={trials.n}")


def _value(group: Group, arm: ArmRuns, metric: str) -> tuple[float, Span | None] | None:
    trials = arm.trials(metric)
    if trials.mean is None:
        return None
    spread = trials.std or 0.0
    return trials.mean, (trials.mean - spread, trials.mean + spread)


BY_SCHEDULE = Axis(
    free=SCHEDULE,
    size=lambda group: int(group.data["iterations"]),
    column=_schedule_name,
    cell=_gain_cell,
    point=_gain,
    x_label="iterations",
    table_caption="by schedule: mean ± sample standard deviation, under it the gain over "
    "supervised of the same schedule with Welch's 95 % interval, in colour where it is beyond "
    "noise. Schedules are multiples of the shortest, iterations in brackets",
    chart_title="Gain in {} over supervised by schedule",
    chart_caption="Gain in {} over supervised of the same schedule, with Welch's 95 % intervals "
    "where the trials allow one; above the line an arm is better.",
    gains=True,
)
BY_LABELS = Axis(
    free=LABELS,
    size=lambda group: int(group.data["dataset"]["train_images"]),
    column=lambda group, _: f"{group.data['dataset']['train_images']:,} images",
    cell=_value_cell,
    point=_value,
    x_label="labelled images",
    table_caption="by the number of labelled training images: mean ± sample standard deviation",
    chart_title="{} by labelled images",
    chart_caption="{} against the number of labelled images, one line per arm, with one sample "
    "standard deviation to each side.",
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
        own = [next((a for a in group.arms if a.label == label), None) for group in groups]
        cells = [
            axis.cell(group, one, metric) if one is not None else Cell(UNDEFINED, "not run")
            for group, one in zip(groups, own, strict=True)
        ]
        rows.append([arm_cell(arm), *cells])
    trials = [
        f"{name} n=" + "/".join(str(arm.trials(metric).n) for arm in group.arms)
        for name, group in zip(names, groups, strict=True)
    ]
    caption = f"{capital(METRICS[metric])} {axis.table_caption}; {listed(trials)}."
    return Table(caption, ("arm", *names), rows)


def _figure(groups: Sequence[Group], arms: dict[str, ArmRuns], metric: str, axis: Axis) -> Figure:
    lines = []
    for label, arm in arms.items():
        points = [
            (float(axis.size(group)), found)
            for group in groups
            for one in group.arms
            if one.label == label and (found := axis.point(group, one, metric)) is not None
        ]
        if len(points) > axis.gains:  # one gain is no line
            at = [(x, y) for x, (y, _) in points]
            lines.append(Line(label, arm.colour, at, spans=[span for _, (_, span) in points]))
    name = METRICS[metric]
    title = capital(axis.chart_title.format(name))
    y_label, sign = (f"gain in {name}", "+") if axis.gains else (name, "")
    svg = size_chart(lines, title=title, x_label=axis.x_label, y_label=y_label, sign=sign)
    return Figure(title, svg, capital(axis.chart_caption.format(name)))
