"""Measured APs beside their published counterparts, and whether the two may be compared at all.

A published table is a counterpart where the test set and the detector are the same. What else
differs is named, and the deviation is then no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from scipy import stats

from moco_det.report.formats import UNDEFINED, listed, number, signed
from moco_det.report.groups import Arm, Group, parse_config
from moco_det.report.statistics import CONFIDENCE
from moco_det.report.tables import Cell, Table
from moco_det.results.published import (
    DATA_NAMES,
    PublishedRow,
    PublishedTable,
    published_tables,
)

# MODEL.BACKBONE.NAME -> the head as papers call it
HEADS: Mapping[str, str] = MappingProxyType(
    {
        "build_resnet_backbone": "C4",
        "build_resnet_dilated_c5_backbone": "DC5",
        "build_resnet_fpn_backbone": "FPN",
    }
)
# What an arm or its weights are called -> the published method
_METHODS: Mapping[str, str] = MappingProxyType(
    {
        "random": "random",
        "sup": "supervised",
        "supervised": "supervised",
        "torchvision": "supervised",
        "moco_v1": "moco_v1",
        "mocov1": "moco_v1",
        "moco_v2": "moco_v2",
        "mocov2": "moco_v2",
        "inst_disc": "inst_disc",
        "instdisc": "inst_disc",
        "npid": "inst_disc",
        "lemniscate": "inst_disc",
        "memory_bank": "memory_bank",
        "end_to_end": "end_to_end",
    }
)
# The settings that a run must share, in words, and how a run's row says them.
_COMPARED: Mapping[str, str] = MappingProxyType(
    {
        "engine": "engine",
        "train_images": "training images",
        "iterations": "iterations",
        "batch": "batch",
        "base_lr": "learning rate",
        "lr_steps": "its steps",
        "metric": "VOC metric",
    }
)
_KEYS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {ruler: ("AP", "AP50", "AP75") for ruler in ("bbox", "segm", "voc")}
)


@dataclass(frozen=True)
class Beside:
    """One arm beside one published row; `differs` is empty where they are comparable."""

    arm: Arm
    table: PublishedTable
    row: PublishedRow
    differs: tuple[str, ...]


@dataclass(frozen=True)
class Mark:
    """One cell: the measured mean minus the published value, and what that means.

    `word` is "within published spread", "outside published spread", "no spread published" or
    "not comparable".
    """

    measured: float
    published: float
    deviation: float
    word: str


def counterparts(group: Group) -> list[Beside]:
    """Every arm of a setting with the published rows of its method, nearest tables only."""
    facts = facts_of(group)
    tables = [table for table in published_tables().values() if _same_task(table, facts)]
    differences = {table.id: _differences(table, facts) for table in tables}
    # Not every source states the learning rate: that one does not must not bring its table nearer.
    stated = {key: value for key, value in facts.items() if key not in ("base_lr", "lr_steps")}
    distance = {table.id: len(_differences(table, stated)) for table in tables}
    found: list[Beside] = []
    for arm in group.arms:
        method = method_of(arm)
        rows = [
            (table, row)
            for table in tables
            for row in table.rows
            if row.method == method and row.pretrained_on in ("none", "imagenet1k")
        ]
        epochs = [row.epochs for _, row in rows if row.epochs and str(row.epochs) in _words(arm)]
        if epochs:
            rows = [(table, row) for table, row in rows if row.epochs in epochs]
        if not rows:
            continue
        fewest = min(distance[table.id] for table, _ in rows)
        seen: set[tuple[Any, ...]] = set()
        for table, row in rows:
            values = (row.epochs, tuple(sorted(row.values.items())))
            if distance[table.id] == fewest and values not in seen:
                seen.add(values)
                own = _own_pretraining(arm, row)
                found.append(Beside(arm, table, row, (*differences[table.id], *own)))
    return found


def facts_of(group: Group) -> dict[str, Any]:
    """What a setting's rows say of the conditions that published tables name."""
    data = group.first.data
    dataset, config = data["dataset"], parse_config(str(data["config"]))
    voc = (data.get("metrics") or {}).get("voc") or {}
    return {
        "classes": len(dataset["classes"]),
        "train_images": dataset["train_images"],
        "test_images": dataset["test_images"],
        "head": HEADS.get(str(config.get("MODEL.BACKBONE.NAME"))),
        "depth": config.get("MODEL.RESNETS.DEPTH"),
        "masks": data["task"] == "box+mask",
        "iterations": data["iterations"],
        "batch": data["batch"],
        "engine": data["engine"]["name"],
        **({"metric": voc["metric"]} if "metric" in voc else {}),
        **({"base_lr": config["SOLVER.BASE_LR"]} if "SOLVER.BASE_LR" in config else {}),
        **({"lr_steps": _list(config["SOLVER.STEPS"])} if "SOLVER.STEPS" in config else {}),
    }


def method_of(arm: Arm) -> str | None:
    """The published method of an arm by its weights' source, else by its name."""
    source = arm.rows[0].data["init"].get("source") or {}
    for word in (source.get("method"), source.get("format"), arm.name):
        found = _METHODS.get(str(word or "").lower().replace("-", "_"))
        if found is not None:
            return found
    return None


def mark(beside: Beside, ruler: str, key: str) -> Mark | None:
    """One cell beside its published value; None where either is missing."""
    column = f"{ruler}.{key}"
    published = beside.row.values.get(column)
    summary = beside.arm.summary(ruler, key)
    if published is None or summary.mean is None:
        return None
    deviation = summary.mean - published
    if beside.differs:
        word = "not comparable"
    else:
        limit = spread_limit(beside.table, beside.row, column, summary.n)
        if limit is None:
            word = "no spread published"
        else:
            word = "within" if abs(deviation) <= limit else "outside"
            word += " published spread"
    return Mark(summary.mean, published, deviation, word)


def spread_limit(table: PublishedTable, row: PublishedRow, column: str, n: int) -> float | None:
    """How far a mean of n trials may lie from the published one by chance, in percent.

    A published deviation of one trial gives the 95 % range of the difference of two such means; a
    published gap is itself the limit. None where no spread is published for the column.
    """
    spread = row.spread.get(column, table.spread.get(column))
    if spread is None:
        return None
    if table.spread_kind == "gap":
        return float(spread)
    width = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
    return width * spread * math.sqrt(1 / n + 1 / (table.trials or 1))


def papers_tables(group: Group) -> list[Table]:
    """A table a ruler: the arms of a setting beside what was published; empty where nothing was."""
    found = counterparts(group)
    tables = []
    for ruler, keys in _KEYS.items():
        body = []
        for beside in found:
            marks = {key: mark(beside, ruler, key) for key in keys}
            if any(marks.values()):
                body.append(_line(beside, marks))
        if body:
            tables.append(Table(_caption(ruler, found), ("arm", "published", *keys),
                                tuple(body), words=2))  # fmt: skip
    return tables


def papers_sentence(groups: Sequence[Group]) -> str:
    """What the page says of published numbers, in one sentence."""
    found = [beside for group in groups for beside in counterparts(group)]
    if not found:
        return "Nothing published has this data and detector, so no published number is shown."
    alike = [beside for beside in found if not beside.differs]
    if not alike:
        return (
            "Published numbers of the same test set and detector are shown below; none is "
            "comparable, and each says why."
        )
    words: dict[str, int] = {}
    for beside in alike:
        for ruler, keys in _KEYS.items():
            for key in keys:
                cell = mark(beside, ruler, key)
                if cell is not None:
                    words[cell.word] = words.get(cell.word, 0) + 1
    counts = listed([f"{count} {word}" for word, count in words.items()])
    return f"Of the cells with a comparable published value: {counts}."


def _line(beside: Beside, marks: Mapping[str, Mark | None]) -> tuple[Cell, ...]:
    cells = []
    for one in marks.values():
        if one is None:
            cells.append(Cell(UNDEFINED))
            continue
        tone = {"within published spread": "gain", "outside published spread": "loss"}
        word = one.word.split()[0]
        said = f", {word}" if word in ("within", "outside") else ""
        note = f"published {number(one.published)}{said}"
        cells.append(Cell(signed(one.deviation), note, tone.get(one.word, "")))
    differs = f". Not comparable: {'; '.join(beside.differs)}" if beside.differs else ""
    source = f"{beside.table.citation}: {beside.table.title}{differs}"
    return (Cell(beside.arm.label), Cell(beside.row.label, source), *cells)


def _caption(ruler: str, found: Sequence[Beside]) -> str:
    what = {"bbox": "Box AP", "segm": "Mask AP", "voc": "Box AP by the VOC ruler"}[ruler]
    spreads = dict.fromkeys(
        b.table.spread_source for b in found if not b.differs and b.table.spread_source
    )
    caption = f"{what}, percent: the mean measured here minus the published value below it."
    if spreads:
        caption += (
            " Within or outside: the published spread, which is how far two means of so many "
            "trials lie apart by chance 95 times of 100, or the gap that the authors call random "
            f"variation ({listed(list(spreads))}); without a word no spread is published."
        )
    return f"{caption} Weights that were not trained here are taken for those of the paper."


def _same_task(table: PublishedTable, facts: Mapping[str, Any]) -> bool:
    keys = ("classes", "test_images", "head", "depth", "masks")
    return table.task == "detection" and all(table.setting.get(k) == facts[k] for k in keys)


def _differences(table: PublishedTable, facts: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        f"{name} {_shown(table.setting[key])} there, {_shown(facts[key])} here"
        for key, name in _COMPARED.items()
        if key in table.setting and key in facts and table.setting[key] != facts[key]
    )


def _list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _own_pretraining(arm: Arm, row: PublishedRow) -> tuple[str, ...]:
    source = arm.rows[0].data["init"].get("source") or {}
    if not str(source.get("format", "")).startswith("moco-det/"):
        return ()
    data = DATA_NAMES.get(row.pretrained_on, row.pretrained_on)
    return (f"pre-trained on {data} there, by this project on data that the weights do not name",)


def _words(arm: Arm) -> str:
    init = arm.rows[0].data["init"]
    source = init.get("source") or {}
    return f"{arm.name} {init['weights']} {source.get('file')} {source.get('epochs')}"
