"""Measured APs beside their published counterparts, and whether the two may be compared at all.

A published table is a counterpart where the test set and the detector are the same. What else
differs is named, and the deviation is then no verdict.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scipy import special

from moco_det.report.document import Cell, Table
from moco_det.report.formats import ALL_METRICS, UNDEFINED, number, signed
from moco_det.report.groups import ArmRuns, Group, config_of
from moco_det.report.sentences import say
from moco_det.report.statistics import CONFIDENCE
from moco_det.results import AP_KEYS
from moco_det.results.published import (
    DATA_NAMES,
    METHOD_NAMES,
    PublishedRow,
    PublishedTable,
    published_tables,
)

# MODEL.BACKBONE.NAME -> the head as papers call it
HEADS = {
    "build_resnet_backbone": "C4",
    "build_resnet_dilated_c5_backbone": "DC5",
    "build_resnet_fpn_backbone": "FPN",
    "build_timm_fpn_backbone": "FPN",
}
# what an arm or its weights may be called -> the published method
_METHODS = {
    **{method: method for method in METHOD_NAMES},
    **dict.fromkeys(("sup", "torchvision"), "supervised"),
    **{"mocov1": "moco_v1", "mocov2": "moco_v2", "moco_ig1b": "moco_v1"},
    **dict.fromkeys(("instdisc", "npid", "lemniscate"), "inst_disc"),
}
# What a published table and a run must share to be about the same detector and test set.
_TASK = ("classes", "test_images", "head", "depth", "masks")
# The other conditions, in words.
_CONDITIONS = {
    "engine": "engine",
    "train_images": "training images",
    "iterations": "iterations",
    "batch": "batch",
    "base_lr": "learning rate",
    "lr_steps": "its steps",
    "metric": "VOC metric",
}


class Counterpart(NamedTuple):
    """One arm beside one published row; `differs` is empty where they are comparable."""

    arm: ArmRuns
    table: PublishedTable
    row: PublishedRow
    differs: tuple[str, ...]


class Deviation(NamedTuple):
    """The measured mean minus the published value, and what that means.

    `word` is "within published spread", "outside published spread", "no spread published" or
    "not comparable".
    """

    published: float
    value: float
    word: str


def counterparts(group: Group) -> list[Counterpart]:
    """Every arm of a setting with the published rows of its method, nearest tables only."""
    facts, found = facts_of(group), []
    tables = [
        (table, _differences(table, facts))
        for table in published_tables().values()
        if table.task == "detection" and all(table.setting.get(k) == facts[k] for k in _TASK)
    ]
    for arm in group.arms:
        # Weights that name their epochs are those of the rows with these epochs, so with IG-1B.
        names = (arm.name, arm.init["weights"], arm.source.get("file"), arm.source.get("epochs"))
        told = " ".join(map(str, names))
        data = ("none", "instagram1b" if "ig1b" in told else "imagenet1k")
        rows = [
            (table, differences, row)
            for table, differences in tables
            for row in table.rows
            if row.method == method_of(arm) and row.pretrained_on in data
        ]
        epochs = [row.epochs for _, _, row in rows if row.epochs and str(row.epochs) in told]
        rows = [one for one in rows if not epochs or one[2].epochs in epochs]
        # Not every source states the learning rate: that one does not must not bring it nearer.
        distances = [len(differs.keys() - {"base_lr", "lr_steps"}) for _, differs, _ in rows]
        seen: list[Any] = []
        for (table, differs, row), distance in zip(rows, distances, strict=True):
            values = (row.epochs, row.values)
            if distance == min(distances) and values not in seen:
                seen.append(values)
                all_differ = (*differs.values(), *_own_pretraining(arm, row))
                found.append(Counterpart(arm, table, row, all_differ))
    return found


def facts_of(group: Group) -> dict[str, Any]:
    """What a setting's rows say of the conditions that published tables name."""
    data, dataset, row = group.data, group.data["dataset"], group.arms[0].rows[0]
    config = config_of(row)
    return {
        "classes": len(dataset["classes"]),
        "train_images": dataset["train_images"],
        "test_images": dataset["test_images"],
        "head": HEADS.get(str(config.get("MODEL.BACKBONE.NAME"))),
        "depth": config.get("MODEL.TIMM.NAME") or config.get("MODEL.RESNETS.DEPTH"),
        "masks": data["task"] == "box+mask",
        "iterations": data["iterations"],
        "batch": data["batch"],
        "engine": data["engine"]["name"],
        "metric": row.metric_table("voc").get("metric"),
        "base_lr": config.get("SOLVER.BASE_LR"),
        "lr_steps": config.get("SOLVER.STEPS"),
    }


def method_of(arm: ArmRuns) -> str | None:
    """The published method of an arm by its weights' source, else by its name."""
    words = (arm.source.get("method"), arm.source.get("format"), arm.name)
    named = (_METHODS.get(str(word or "").lower().replace("-", "_")) for word in words)
    return next((method for method in named if method is not None), None)


def deviation(one: Counterpart, metric: str, key: str) -> Deviation | None:
    """One AP beside its published value; None where either is missing."""
    column = f"{metric}.{key}"
    published, trials = one.row.values.get(column), one.arm.trials(metric, key)
    if published is None or trials.mean is None:
        return None
    value = trials.mean - published
    limit = spread_limit(one.table, one.row, column, trials.n)
    if one.differs:
        word = "not comparable"
    elif limit is None:
        word = "no spread published"
    else:
        word = f"{'within' if abs(value) <= limit else 'outside'} published spread"
    return Deviation(published, value, word)


def spread_limit(table: PublishedTable, row: PublishedRow, column: str, n: int) -> float | None:
    """How far a mean of n trials may lie from the published one by chance, in percent.

    A published deviation of one trial gives the 95 % range of the difference of two such means; a
    published gap is itself the limit. None where no spread is published for the column.
    """
    spread = row.spread.get(column, table.spread.get(column))
    if spread is None or table.spread_kind == "gap":
        return spread
    width = float(special.ndtri(0.5 + CONFIDENCE / 2))
    return width * spread * math.sqrt(1 / n + 1 / (table.trials or 1))


def paper_tables(group: Group) -> list[Table]:
    """One table per metric: the arms beside what was published; empty where nothing was."""
    found, tables = counterparts(group), []
    sources = dict.fromkeys(one.table.spread_source for one in found if not one.differs)
    for metric, name in ALL_METRICS.items():
        body = []
        for one in found:
            cells = [deviation(one, metric, key) for key in AP_KEYS]
            if any(cells):
                differs = f". Not comparable: {'; '.join(one.differs)}" if one.differs else ""
                source = f"{one.table.citation}: {one.table.title}{differs}"
                body.append([one.arm.label, Cell(one.row.label, source), *map(_cell, cells)])
        if body:
            caption = say("papers", name=name, sources=list(filter(None, sources)))
            tables.append(Table(caption, ("arm", "published", *AP_KEYS), body, words=2))
    return tables


def paper_sentence(groups: Sequence[Group]) -> str:
    """What the page says of published numbers."""
    found = [one for group in groups for one in counterparts(group)]
    alike = [one for one in found if not one.differs]
    cells = (deviation(one, m, key) for one in alike for m in ALL_METRICS for key in AP_KEYS)
    words = Counter(cell.word for cell in cells if cell is not None)
    counts = [f"{count} {word}" for word, count in words.items()]
    return say("measured", found=found, alike=alike, counts=counts)


def _cell(found: Deviation | None) -> Cell:
    if found is None:
        return Cell(UNDEFINED)
    word = found.word.split()[0]
    tone = {"within": "gain", "outside": "loss"}.get(word, "")
    note = f"published {number(found.published)}{f', {word}' if tone else ''}"
    return Cell(signed(found.value), note, tone)


def _differences(table: PublishedTable, facts: Mapping[str, Any]) -> dict[str, str]:
    """{condition: what it is there and here} where they differ."""

    def shown(value: Any) -> str:
        return f"{value:,}" if type(value) is int else str(value)

    return {
        key: f"{name} {shown(table.setting[key])} there, {shown(facts[key])} here"
        for key, name in _CONDITIONS.items()
        if key in table.setting and facts[key] not in (None, table.setting[key])
    }


def _own_pretraining(arm: ArmRuns, row: PublishedRow) -> tuple[str, ...]:
    if not str(arm.source.get("format", "")).startswith("moco-det/"):
        return ()
    data = DATA_NAMES.get(row.pretrained_on, row.pretrained_on)
    return (f"pre-trained on {data} there, by this project on data that the weights do not name",)
