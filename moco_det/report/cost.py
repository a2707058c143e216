"""What detectors cost, where those of a report differ in it, and AP against it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from moco_det.report.charts import Line, line_chart
from moco_det.report.document import Block, Cell, Figure, Figures, Heading, Table, table_of
from moco_det.report.formats import METRICS, capital, listed, number, short_name
from moco_det.report.groups import ArmRuns, Group, config_of, config_title, facts_of
from moco_det.report.sentences import say

COUNTED = ("parameters", "trainable_parameters", "backbone_flops", "image")


class ArmCost(NamedTuple):
    """The cost in the rows of an arm; `letter` is its setting's."""

    letter: str
    group: Group
    arm: ArmRuns
    cost: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The same for detectors that cost the same."""
        return str([self.cost[name] for name in COUNTED])

    @property
    def gflops(self) -> float | None:
        flops = self.cost["backbone_flops"]
        return None if flops is None else flops / 1e9


def blocks(groups: Sequence[Group]) -> list[Block]:
    """A table and pictures of the settings that share data, schedule, batch, engine and heads.

    The work of the heads is not counted, so settings with other heads do not compare. Nothing where
    all detectors cost the same, or where no row says what its detector costs.
    """
    families: dict[str, list[ArmCost]] = {}
    for group in groups:
        row = group.rows[0]
        heads = config_of(row).get("MODEL.ROI_HEADS.NAME")
        key = json.dumps([facts_of(row), heads], default=str)
        for arm in group.arms:
            for cost in [row.data["cost"] for row in arm.rows if row.data.get("cost")][:1]:
                letter = group.name.removeprefix("Setting ")
                families.setdefault(key, []).append(ArmCost(letter, group, arm, cost))
    return [
        block
        for family in families.values()
        if len({one.key for one in family}) > 1
        for block in _family(family)
    ]


def _family(family: Sequence[ArmCost]) -> list[Block]:
    first = family[0].group
    shared = [first.data["task"], first.data["engine"]["name"], first.data["precision"]]
    legend = {one.arm.label: one.arm.colour for one in family}
    found: list[Block] = [
        Heading(short_name(first.data["dataset"]["test"]), " · ".join(shared)),
        _table(family),
    ]
    if len({one.gflops for one in family} - {None}) > 1:
        figures = [_chart(family, metric) for metric in first.metrics]
        found.append(Figures(figures, list(legend.items())))
    return found


def _table(family: Sequence[ArmCost]) -> Table:
    """A line per setting, or per cost where the arms of one differ in it."""
    machines = {str(row.data["hardware"]["device"]) for one in family for row in one.arm.rows}
    lines: dict[tuple[str, str], list[ArmCost]] = {}
    for one in family:
        lines.setdefault((one.letter, one.key), []).append(one)
    body = []
    for (letter, _), same in lines.items():
        group, cost, gflops = same[0].group, same[0].cost, same[0].gflops
        arms = [one.arm for one in same]
        known = [row.data.get("cost") or {} for arm in arms for row in arm.rows]
        speeds = [one["images_per_second"] for one in known if one.get("images_per_second")]
        machine = str(arms[0].rows[0].data["hardware"]["device"]) if len(machines) > 1 else ""
        some = listed([arm.label for arm in arms]) if len(arms) < len(group.arms) else ""
        height, width = cost["image"]
        line = {
            "setting": Cell(f"{letter}: {config_title(group.arms[0].rows[0])}", some),
            "backbone GFLOPs": Cell(_short(gflops), f"{height} × {width}"),
            "parameters": f"{_short(cost['parameters'] / 1e6)} M",
            "trained": f"{_short(cost['trainable_parameters'] / 1e6)} M",
            "images/s": Cell(_short(median(speeds) if speeds else None), machine),
        }
        body.append(line)
    return table_of(say("cost", machines=sorted(machines)), body)


def _short(value: float | None) -> str:
    return number(value, 1 if value is None or value >= 10 else 2)


def _chart(family: Sequence[ArmCost], metric: str) -> Figure:
    """A point per arm and setting; each setting's letter stands over its highest."""
    lines: dict[str, Line] = {}
    highest: dict[str, tuple[float, float]] = {}
    for one in family:
        trials, gflops = one.arm.trials(metric), one.gflops
        if trials.mean is None or trials.band is None or gflops is None:
            continue
        line = lines.get(one.arm.label) or Line(one.arm.label, one.arm.colour, ())
        points = [*line.points, (gflops, trials.mean)]
        lines[line.label] = line._replace(points=points, spans=[*line.spans, trials.band])
        top = (gflops, trials.band[1])
        highest[one.letter] = max(highest.get(one.letter, top), top, key=lambda point: point[1])
    what = METRICS[metric]
    svg = line_chart(
        list(lines.values()),
        f"{capital(what)} against the cost of the backbone",
        f"{what}, percent",
        "backbone GFLOPs per image",
        joined=False,
        names=highest,
    )
    settings = {one.letter: config_title(one.group.arms[0].rows[0]) for one in family}
    caption = say("cost_chart", what=what, settings=[f"{k} {v}" for k, v in settings.items()])
    return Figure(f"{capital(what)} against cost", svg, caption)
