"""Published results, read from data/published.yaml; every number there names its source.

find_table("moco_v1.table2b").row("super_in_1m").values["voc.AP"]   # 53.5
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from types import MappingProxyType
from typing import Any

import yaml

from moco_det.foundation.errors import InputError

# method of a row -> what people call it
METHOD_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "random": "random",
        "supervised": "supervised",
        "moco_v1": "MoCo v1",
        "moco_v2": "MoCo v2",
        "end_to_end": "end-to-end",
        "memory_bank": "memory bank",
        "inst_disc": "InstDisc",
    }
)
# data of the pre-training -> what people call it
DATA_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "none": "no data",
        "imagenet1k": "ImageNet-1k",
        "imagenet14m": "ImageNet-14M",
        "yfcc100m": "YFCC-100M",
        "instagram1b": "Instagram-1B",
        "cifar10": "CIFAR-10",
    }
)


@dataclass(frozen=True)
class PublishedRow:
    """One line of a published table; `values` are percent by column, absent where not printed.

    `epochs` are those of the pre-training, None where the source does not state them; `spread` is
    the row's own standard deviation by column.
    """

    key: str
    name: str
    method: str
    pretrained_on: str
    arch: str
    epochs: int | None
    details: Mapping[str, Any]
    spread: Mapping[str, float]
    values: Mapping[str, float]

    @property
    def label(self) -> str:
        """ "MoCo v2, 200 epochs" or, for a method without a common name, the source's own words."""
        if self.method not in METHOD_NAMES:
            return self.name
        parts = [METHOD_NAMES[self.method]]
        if self.epochs is not None:
            parts.append(f"{self.epochs} epochs")
        parts += [f"{key}={value}" for key, value in self.details.items()]
        if self.pretrained_on not in ("none", "imagenet1k"):
            parts.append(f"on {DATA_NAMES.get(self.pretrained_on, self.pretrained_on)}")
        return ", ".join(parts)


@dataclass(frozen=True)
class PublishedTable:
    """A published table: the conditions its rows share, and the rows.

    `setting` holds what a run must share to be comparable. `spread` is by column, in percent: the
    standard deviation of one trial, or under `spread_kind` "gap" a difference of two results that
    the source calls random variation.
    """

    id: str
    source: str
    source_short: str
    source_full: str
    place: str
    task: str
    title: str
    setting: Mapping[str, Any]
    trials: int | None
    spread: Mapping[str, float]
    spread_kind: str
    spread_source: str
    columns: tuple[str, ...]
    rows: tuple[PublishedRow, ...]

    @property
    def citation(self) -> str:
        """ "MoCo (He et al. 2020), Table 2(b)"."""
        return f"{self.source_short}, {self.place}"

    def row(self, key: str) -> PublishedRow:
        """The row with a key; InputError lists the keys there are."""
        for row in self.rows:
            if row.key == key:
                return row
        known = ", ".join(row.key for row in self.rows)
        raise InputError(f"published table {self.id} has no row {key!r}; it has {known}")


def published_tables() -> Mapping[str, PublishedTable]:
    """Every published table by its id, in the file's order."""
    return _tables()


def find_table(table: str) -> PublishedTable:
    """The table with an id such as "moco_v1.table2b"; InputError lists the ids there are."""
    tables = _tables()
    if table not in tables:
        raise InputError(f"no published table {table!r}; there are {', '.join(tables)}")
    return tables[table]


@lru_cache(maxsize=1)
def _tables() -> Mapping[str, PublishedTable]:
    text = (resources.files("moco_det.results") / "data" / "published.yaml").read_text("utf-8")
    tree = yaml.safe_load(text)
    tables = [_table(entry, tree["sources"]) for entry in tree["tables"]]
    return MappingProxyType({table.id: table for table in tables})


def _table(entry: Mapping[str, Any], sources: Mapping[str, Mapping[str, str]]) -> PublishedTable:
    source = sources[entry["source"]]
    return PublishedTable(
        id=entry["id"],
        source=entry["source"],
        source_short=source["short"],
        source_full=source["full"],
        place=entry["place"],
        task=entry["task"],
        title=entry["title"],
        setting=MappingProxyType(entry["setting"]),
        trials=entry.get("trials"),
        spread=MappingProxyType(entry.get("spread") or {}),
        spread_kind=entry.get("spread_kind", "std"),
        spread_source=entry.get("spread_source", ""),
        columns=tuple(entry["columns"]),
        rows=tuple(_row(row) for row in entry["rows"]),
    )


def _row(entry: Mapping[str, Any]) -> PublishedRow:
    return PublishedRow(
        key=entry["key"],
        name=entry["name"],
        method=entry["method"],
        pretrained_on=entry["pretrained_on"],
        arch=entry.get("arch", "resnet50"),
        epochs=entry.get("epochs"),
        details=MappingProxyType(entry.get("details") or {}),
        spread=MappingProxyType(entry.get("spread") or {}),
        values=MappingProxyType({k: float(v) for k, v in entry["values"].items()}),
    )
