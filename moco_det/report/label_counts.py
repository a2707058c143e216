"""Settings that differ in their number of labelled images: what pre-training is worth with few."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from moco_det.report import charts
from moco_det.report.formats import mean_std, sentence
from moco_det.report.groups import Arm, Group, short_name
from moco_det.report.schedules import Family, by_arm, families
from moco_det.report.tables import Cell, Table
from moco_det.report.verdict import RULERS


def label_families(groups: Sequence[Group], colours: dict[str, int]) -> list[Family]:
    """Families of settings that differ in their training images alone, fewest first."""
    return [_family(members, colours) for members in families(groups, _images, ["DATASETS.TRAIN"])]


def _images(group: Group) -> int:
    return int(group.first.data["dataset"]["train_images"])


def _family(groups: Sequence[Group], colours: dict[str, int]) -> Family:
    data = groups[0].first.data
    rulers = [ruler for ruler in RULERS if all(group.has(ruler) for group in groups)]
    return Family(
        title=f"{short_name(data['dataset']['test'])} · {data['task']} · "
        f"{data['engine']['name']} · {data['precision']}",
        tables=[_table(groups, ruler, colours) for ruler in rulers],
        chart=[(_caption(ruler), _chart(groups, ruler, colours)) for ruler in rulers],
    )


def _table(groups: Sequence[Group], ruler: str, colours: dict[str, int]) -> Table:
    def cell(group: Group, arm: Arm) -> Cell:
        summary = arm.summary(ruler, "AP")
        return Cell(mean_std(summary), f"n={summary.n}")

    labels, body = by_arm(groups, cell)
    return Table(
        caption=f"{sentence(RULERS[ruler])} by the number of labelled training images: mean ± "
        "sample standard deviation.",
        header=("arm", *(f"{_images(group):,} images" for group in groups)),
        rows=body,
        colours=tuple(colours[label] for label in labels),
    )


def _chart(groups: Sequence[Group], ruler: str, colours: dict[str, int]) -> Markup:
    points: dict[str, list[charts.Gain]] = {}
    for group in groups:
        for arm in group.arms:
            summary = arm.summary(ruler, "AP")
            if summary.mean is not None:
                spread = summary.std or 0.0
                low, high = summary.mean - spread, summary.mean + spread
                found = charts.Gain(float(_images(group)), summary.mean, low, high)
                points.setdefault(arm.label, []).append(found)
    return charts.gain_chart(
        [(label, colours[label], gains) for label, gains in points.items()],
        title=f"{sentence(RULERS[ruler])} by labelled images",
        x_label="labelled images",
        y_label=RULERS[ruler],
        sign="",
    )


def _caption(ruler: str) -> str:
    return (
        f"{sentence(RULERS[ruler])} against the number of labelled images, one line per arm, with "
        "one sample standard deviation to each side."
    )
