"""Settings that differ in their schedule alone, side by side: the gain as training grows longer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from moco_det.report import charts
from moco_det.report.formats import UNDEFINED, listed, mean_std, sentence
from moco_det.report.groups import Arm, Group, parse_config, short_name
from moco_det.report.tables import Cell, Table, difference
from moco_det.report.verdict import RULERS

# What a schedule consists of; everything else must be the same.
SCHEDULE_KEYS = (
    "SOLVER.MAX_ITER",
    "SOLVER.STEPS",
    "SOLVER.WARMUP_ITERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
)


@dataclass(frozen=True)
class Family:
    """Settings that differ in one thing, the smallest first, their tables and their charts."""

    title: str
    tables: list[Table]
    chart: list[tuple[str, Markup]]


def schedule_families(groups: Sequence[Group], colours: dict[str, int]) -> list[Family]:
    """The families of two settings or more; a family shares all but its schedule."""
    return [
        _schedules(members, colours)
        for members in families(groups, lambda group: group.first.data["iterations"], SCHEDULE_KEYS)
    ]


def families(
    groups: Sequence[Group], size: Callable[[Group], int], free: Sequence[str]
) -> list[list[Group]]:
    """Groups that share all but the `free` config keys, in the order of `size`, which differs.

    With DATASETS.TRAIN among the free keys the training set itself may differ.
    """
    found: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        found.setdefault(_shared(group, free), []).append(group)
    return [
        sorted(members, key=size) for members in found.values() if len(set(map(size, members))) > 1
    ]


def _shared(group: Group, free: Sequence[str]) -> tuple[str, ...]:
    data = group.first.data
    config = parse_config(str(data["config"]))
    left_out = {*free, "MODEL.WEIGHTS", "OUTPUT_DIR", "SEED", "MODEL.PIXEL_MEAN",
                "MODEL.PIXEL_STD", "INPUT.FORMAT", "MODEL.RESNETS.STRIDE_IN_1X1"}  # fmt: skip
    shared = {key: value for key, value in config.items() if key not in left_out}
    return (
        data["task"],
        data["engine"]["name"],
        data["engine"]["version"],
        data["precision"],
        "" if "DATASETS.TRAIN" in free else data["dataset"]["train_fingerprint"],
        data["dataset"]["test_fingerprint"],
        str(data["batch"]),
        json.dumps(shared, sort_keys=True, default=str),
    )


def _schedules(groups: Sequence[Group], colours: dict[str, int]) -> Family:
    data = groups[0].first.data
    title = (
        f"{short_name(data['dataset']['test'])} · {data['task']} · {data['engine']['name']} · "
        f"{data['precision']}"
    )
    rulers = [ruler for ruler in RULERS if all(group.has(ruler) for group in groups)]
    figures = [(ruler, _chart(groups, ruler, colours)) for ruler in rulers]
    return Family(
        title=title,
        tables=[_table(groups, ruler, colours) for ruler in rulers],
        chart=[(_chart_caption(groups, ruler), svg) for ruler, svg in figures if svg],
    )


def schedule_name(group: Group, shortest: Group) -> str:
    """ "2x (180,000)": how often the shortest schedule fits, and the iterations."""
    steps = group.first.data["iterations"]
    return f"{steps / shortest.first.data['iterations']:.3g}x ({steps:,})"


def by_arm(
    groups: Sequence[Group], cell: Callable[[Group, Arm], Cell]
) -> tuple[list[str], tuple[tuple[Cell, ...], ...]]:
    """The arms of a family by name, and one row per arm with a cell for each of its settings."""
    labels = list(dict.fromkeys(arm.label for group in groups for arm in group.arms))
    rows = []
    for label in labels:
        found = [next((arm for arm in group.arms if arm.label == label), None) for group in groups]
        cells = [
            Cell(UNDEFINED, "not run") if arm is None else cell(group, arm)
            for group, arm in zip(groups, found, strict=True)
        ]
        rows.append((Cell(label), *cells))
    return labels, tuple(rows)


def _table(groups: Sequence[Group], ruler: str, colours: dict[str, int]) -> Table:
    def cell(group: Group, arm: Arm) -> Cell:
        note, tone = difference(group.against(arm, group.supervised, ruler, "AP"))
        summary = arm.summary(ruler, "AP")
        return Cell(mean_std(summary), note or f"n={summary.n}", tone)

    labels, body = by_arm(groups, cell)
    counts = listed(
        [
            f"{schedule_name(group, groups[0])} n="
            + "/".join(str(arm.summary(ruler, "AP").n) for arm in group.arms)
            for group in groups
        ]
    )
    return Table(
        caption=f"{sentence(RULERS[ruler])} by schedule: mean ± sample standard deviation, under "
        "it the gain over supervised of the same schedule with Welch's 95 % interval, in colour "
        "where it is beyond noise. Schedules are multiples of the shortest, iterations in "
        f"brackets; {counts}.",
        header=("arm", *(schedule_name(group, groups[0]) for group in groups)),
        rows=body,
        colours=tuple(colours[label] for label in labels),
    )


def _chart(groups: Sequence[Group], ruler: str, colours: dict[str, int]) -> Markup:
    lines: dict[str, list[charts.Gain]] = {}
    for group in groups:
        for arm in group.arms:
            gap = group.against(arm, group.supervised, ruler, "AP")
            if gap is not None and gap.difference is not None:
                steps = float(group.first.data["iterations"])
                lines.setdefault(arm.label, []).append(
                    charts.Gain(steps, gap.difference, gap.low, gap.high)
                )
    drawn = [(label, colours[label], gains) for label, gains in lines.items() if len(gains) > 1]
    return charts.gain_chart(
        drawn,
        title=f"Gain in {RULERS[ruler]} over supervised by schedule",
        x_label="iterations",
        y_label=f"gain in {RULERS[ruler]}",
    )


def _chart_caption(groups: Sequence[Group], ruler: str) -> str:
    return (
        f"Gain in {RULERS[ruler]} over supervised of the same schedule, with Welch's 95 % "
        "intervals where the trials allow one; above the line an arm is better."
    )
