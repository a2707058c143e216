"""Probes in the report: accuracies of features, apart from every AP.

Rows that share protocol, settings, data, precision and version make a group; only within one are
accuracies set side by side. An arm is one name with one way of pre-training; where it was probed
after several numbers of steps, each has its own line, and together they are a curve. Trials differ
in the probed weights or in the probe's seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from moco_det.report import charts
from moco_det.report.curves import arm_curve
from moco_det.report.formats import UNDEFINED, counted, duration, listed, mean_std, number
from moco_det.report.groups import RANDOM_NAMES, arm_rank, parse_config, short_name
from moco_det.report.statistics import Summary, compare, summarise
from moco_det.report.tables import Cell, Table, difference
from moco_det.results import Row
from moco_det.results.published_probes import comparable

# protocol -> what it is called
PROTOCOLS: dict[str, str] = {
    "knn": "nearest neighbours",
    "linear": "linear classifier, SGD over random crops",
    "linear_lbfgs": "linear classifier, L-BFGS on central views (a protocol of its own)",
    "finetune": "fine-tuning of the whole network",
}
# Settings that arms of one group may choose for themselves: papers tune them for each.
FREE_SETTINGS: dict[str, tuple[str, ...]] = {"finetune": ("lr", "head_lr")}
METRICS: dict[str, str] = {"top1": "top-1", "top5": "top-5", "mean_class": "mean of classes"}


@dataclass(frozen=True)
class Point:
    """An arm after one number of pre-training steps (None: unknown); `rows` are its trials."""

    iterations: int | None
    rows: tuple[Row, ...]

    def summary(self, key: str) -> Summary:
        """The trials of one accuracy."""
        return summarise(row.metric("probe", key) for row in self.rows)

    @property
    def weights(self) -> int:
        """How many different weights were probed."""
        return len({_weights(row) for row in self.rows})


@dataclass(frozen=True)
class ProbeArm:
    """One initialisation; its points in order of steps."""

    name: str
    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class ProbeGroup:
    """One protocol with one setting on one pair of sets."""

    title: str
    arms: tuple[ProbeArm, ...]
    repeated: tuple[Row, ...]

    @property
    def first(self) -> Row:
        """Any row: they agree in all that groups them."""
        return self.arms[0].points[0].rows[0]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The trials of every arm and point."""
        return tuple(row for arm in self.arms for point in arm.points for row in point.rows)


@dataclass(frozen=True)
class ProbeSection:
    """What the page shows of one group; `curve` is (caption, svg) pairs, one or none."""

    title: str
    table: Table
    published: Table | None
    note: str
    curve: list[tuple[str, Any]]
    settings: str


def group_probes(rows: Iterable[Row]) -> list[ProbeGroup]:
    """The finished probes in groups, in the order in which each first appears.

    Of rows with the same arm, weights, steps and seed the last one counts.
    """
    by_key: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.finished and row.probe:
            by_key.setdefault(_key(row), []).append(row)
    groups = []
    for members in by_key.values():
        last: dict[tuple[str, ...], Row] = {}
        repeated = []
        for row in members:
            identity = (*_arm(row), str(row.data["iterations"]), _weights(row), str(row.seed))
            if identity in last:
                repeated.append(last[identity])
            last[identity] = row
        groups.append(ProbeGroup(_title(members[0]), _arms(last.values()), tuple(repeated)))
    return groups


def _key(row: Row) -> tuple[str, ...]:
    data = row.data
    free = FREE_SETTINGS.get(data["protocol"], ())
    settings = {k: v for k, v in parse_config(data["config"]).items() if k not in free}
    return (
        data["protocol"],
        data["engine"]["name"],
        data["engine"]["version"],
        data["precision"],
        data["dataset"]["train_fingerprint"],
        data["dataset"]["test_fingerprint"],
        json.dumps(settings, sort_keys=True, default=str),
    )


def _arm(row: Row) -> tuple[str, str, str]:
    """(name, way of pre-training, settings of its own) of a row."""
    source = row.data["init"]["source"] or {}
    config = parse_config(row.data["config"])
    own = {key: config.get(key) for key in FREE_SETTINGS.get(row.data["protocol"], ())}
    text = ", ".join(f"{key} {value:g}" for key, value in own.items() if _is_number(value))
    return row.arm, str(source.get("settings") or ""), text


def _weights(row: Row) -> str:
    """What tells the probed weights apart: their file, or the seed of random ones."""
    return str(row.data["init"]["sha256"] or f"seed {row.seed}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _title(row: Row) -> str:
    data, config = row.data, parse_config(row.data["config"])
    parts = [
        short_name(data["dataset"]["test"]),
        PROTOCOLS[data["protocol"]],
        *([str(config["arch"])] if "arch" in config else []),
        *([f"{config['size']} px"] if "size" in config else []),
        *([f"k={config['k']}"] if "k" in config else []),
        *([f"{config['features']} features"] if "features" in config else []),
        *([counted(config["epochs"], "epoch")] if "epochs" in config else []),
        data["precision"],
    ]
    return " · ".join(parts)


def _arms(rows: Iterable[Row]) -> tuple[ProbeArm, ...]:
    by_arm: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        by_arm.setdefault(_arm(row), []).append(row)
    arms = []
    for (name, settings, own), members in by_arm.items():
        same = [other for other in by_arm if other[0] == name]
        label = name
        if len({other[1] for other in same}) > 1:
            label += f" [{settings[:8] or 'no settings'}]"
        if own and len({other[2] for other in by_arm}) > 1:
            label += f" ({own})"
        points: dict[int | None, list[Row]] = {}
        for row in members:
            points.setdefault(row.data["iterations"], []).append(row)
        ordered = sorted(points, key=lambda steps: -1 if steps is None else steps)
        arms.append(
            ProbeArm(
                name,
                label,
                tuple(
                    Point(steps, tuple(sorted(points[steps], key=lambda row: row.seed)))
                    for steps in ordered
                ),
            )
        )
    return tuple(sorted(arms, key=lambda arm: (arm_rank(arm.name), arm.label)))


def section(group: ProbeGroup, colours: dict[str, int]) -> ProbeSection:
    """One group's tables and curve."""
    data = group.first.data
    return ProbeSection(
        title=group.title,
        table=accuracy_table(group, colours),
        published=published_table(group),
        note=_note(group),
        curve=_curve(group, colours),
        settings=str(data["config"]),
    )


def accuracy_table(group: ProbeGroup, colours: dict[str, int]) -> Table:
    """A line for each arm and number of steps: mean ± std, under top-1 the gap to random."""
    randoms = [arm for arm in group.arms if arm.name in RANDOM_NAMES]
    reference = randoms[0].points[0] if len(randoms) == 1 and len(randoms[0].points) == 1 else None
    body, marks = [], []
    for arm in group.arms:
        for point in arm.points:
            steps = UNDEFINED if point.iterations is None else f"{point.iterations:,}"
            cells = [Cell(arm.label), Cell(steps), Cell(str(len(point.rows)))]
            cells.append(Cell(str(point.weights)))
            for key in METRICS:
                note, tone = "", ""
                if key == "top1" and reference is not None and point is not reference:
                    gap = compare(point.summary(key), reference.summary(key))
                    note, tone = difference(gap)
                cells.append(Cell(mean_std(point.summary(key)), note, tone))
            body.append(tuple(cells))
            marks.append(colours[arm.label])
    dataset = group.first.data["dataset"]
    caption = (
        f"{group.title}: accuracy in percent on {counted(dataset['test_images'], 'image')} of "
        f"{counted(len(dataset['classes']), 'class', 'classes')} after learning from "
        f"{counted(dataset['train_images'], 'image')}; mean ± sample standard deviation over n "
        "trials, which differ in the probed weights or the probe's seed"
    )
    if reference is not None and len(group.arms) > 1:
        caption += "; under top-1 the difference to random with Welch's 95 % interval"
    header = ("arm", "pre-training steps", "n", "weights", *METRICS.values())
    return Table(f"{caption}.", header, tuple(body), colours=tuple(marks))


def published_table(group: ProbeGroup) -> Table | None:
    """Published numbers of the same protocol, settings and data; None where there are none."""
    data = group.first.data
    rows = comparable(
        str(data["protocol"]),
        parse_config(data["config"]),
        classes=len(data["dataset"]["classes"]),
        train=data["dataset"]["train_images"],
        test=data["dataset"]["test_images"],
    )
    if not rows:
        return None
    body = tuple((Cell(row.name), Cell(row.source), Cell(number(row.top1))) for row in rows)
    return Table(
        "Published, not measured here: ImageNet-1k, the same protocol and architecture; top-1 in "
        "percent.",
        ("published", "source", "top-1"),
        body,
        words=2,
    )


def _note(group: ProbeGroup) -> str:
    if published_table(group) is None:
        return "Nothing published has these data, sizes and settings, so none is shown."
    return ""


def _curve(group: ProbeGroup, colours: dict[str, int]) -> list[tuple[str, Any]]:
    """Top-1 against pre-training steps where an arm has several points."""
    if not any(len(arm.points) > 1 for arm in group.arms):
        return []
    drawn = []
    for arm in group.arms:
        by_seed: dict[int, list[tuple[float, float]]] = {}
        for point in arm.points:
            for row in point.rows:
                top1 = row.metric("probe", "top1")
                if point.iterations is not None and top1 is not None:
                    by_seed.setdefault(row.seed, []).append((float(point.iterations), top1))
        curve = arm_curve(arm.label, list(by_seed.values()))
        if curve is not None:
            drawn.append((curve, colours[arm.label]))
    svg = charts.line_chart(
        drawn,
        title="Top-1 against pre-training steps",
        x_label="pre-training steps",
        y_label="top-1, percent",
        dots=True,
    )
    names = listed([f"{curve.label} n={len(curve.seeds)}" for curve, _ in drawn])
    caption = f"{group.title}: top-1 against pre-training steps; thin: each seed, thick: their "
    return [(f"{caption}mean; {names}.", svg)]


def probe_run_table(groups: Sequence[ProbeGroup], colours: dict[str, int]) -> Table:
    """Every probe that counts, one line each."""
    body, marks = [], []
    for group in groups:
        for arm in group.arms:
            for point in arm.points:
                for row in point.rows:
                    data = row.data
                    body.append(
                        (
                            Cell(str(data["run"])),
                            Cell(arm.label),
                            Cell(str(data["protocol"])),
                            Cell(str(data["init"]["sha256"] or UNDEFINED)[:12], "", "code"),
                            Cell(str(row.seed)),
                            Cell(number(row.metric("probe", "top1"))),
                            Cell(duration(float(data["wall_seconds"]))),
                            Cell(str(data["started"])),
                        )
                    )
                    marks.append(colours[arm.label])
    header = ("probe", "arm", "protocol", "sha256", "seed", "top-1", "wall time", "started (UTC)")
    return Table("Every probe behind the tables.", header, tuple(body), 4, tuple(marks))


def probe_warnings(groups: Sequence[ProbeGroup]) -> list[str]:
    """What a reader should know beside the rows' own warnings."""
    lines = [
        f"probe {row.data['run']} was repeated with the same weights and seed; the later row counts"
        for group in groups
        for row in group.repeated
    ]
    for group in groups:
        names = [arm.name for arm in group.arms]
        lines += [
            f"the arm {name} was pre-trained in {names.count(name)} ways or probed with different "
            "rates, shown apart"
            for name in sorted(set(names))
            if names.count(name) > 1
        ]
    return lines
