"""Published results, read from data/published.yaml; every number there names its source.

find_table("moco_v1.table2b").row("super_in_1m").values["voc.AP"]   # 53.5
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from types import MappingProxyType
from typing import Any

import yaml

from moco_det.foundation.errors import InputError

# method of a row -> its usual name
METHOD_NAMES = {
    "random": "random",
    "supervised": "supervised",
    "moco_v1": "MoCo v1",
    "moco_v2": "MoCo v2",
    "end_to_end": "end-to-end",
    "memory_bank": "memory bank",
    "inst_disc": "InstDisc",
    "moby": "MoBY",
}
# data of the pre-training -> its usual name
DATA_NAMES = {
    "none": "no data",
    "imagenet1k": "ImageNet-1k",
    "imagenet14m": "ImageNet-14M",
    "yfcc100m": "YFCC-100M",
    "instagram1b": "Instagram-1B",
    "cifar10": "CIFAR-10",
}


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
    values: Mapping[str, float]
    arch: str = "resnet50"
    epochs: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)

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
    the source calls random variation. `source` has the source's short and full name.
    """

    id: str
    source: Mapping[str, str]
    place: str
    task: str
    title: str
    setting: Mapping[str, Any]
    columns: Sequence[str]
    rows: Sequence[PublishedRow]
    trials: int | None = None
    spread: Mapping[str, float] = field(default_factory=dict)
    spread_kind: str = "std"
    spread_source: str = ""

    @property
    def citation(self) -> str:
        """ "MoCo (He et al. 2020), Table 2(b)"."""
        return f"{self.source['short']}, {self.place}"

    def row(self, key: str) -> PublishedRow:
        """The row with a key; InputError lists the keys there are."""
        for row in self.rows:
            if row.key == key:
                return row
        known = ", ".join(row.key for row in self.rows)
        raise InputError(f"published table {self.id} has no row {key!r}; it has {known}")


@lru_cache(maxsize=1)
def published_tables() -> Mapping[str, PublishedTable]:
    """Every published table by its id, in the file's order."""
    text = (resources.files("moco_det.results") / "data" / "published.yaml").read_text("utf-8")
    tree = yaml.safe_load(text)
    tables = {}
    for entry in tree["tables"]:
        rows = [PublishedRow(**row) for row in entry["rows"]]
        source = tree["sources"][entry["source"]]
        tables[entry["id"]] = PublishedTable(**{**entry, "source": source, "rows": rows})
    return MappingProxyType(tables)


def find_table(table: str) -> PublishedTable:
    """The table with an id such as "moco_v1.table2b"; InputError lists the ids there are."""
    tables = published_tables()
    if table not in tables:
        raise InputError(f"no published table {table!r}; there are {', '.join(tables)}")
    return tables[table]


def published_accuracies(
    protocol: str, settings: Mapping[str, Any]
) -> list[tuple[PublishedTable, PublishedRow]]:
    """Published top-1 ("probe.top1") of a probe's protocol, data and settings; mostly none.

    `settings` are the probe's own, with `classes`, `train_images` and `test_images` of its data.
    Only methods that this project trains are given, each number once, and no reproductions.
    """
    found: dict[tuple[Any, ...], tuple[PublishedTable, PublishedRow]] = {}
    for table in published_tables().values():
        wanted = {k: v for k, v in table.setting.items() if k not in ("train", "test")}
        if table.task != protocol or "size" not in wanted or table.id.startswith("repro."):
            continue
        if any(settings.get(key) != value for key, value in wanted.items()):
            continue
        for row in table.rows:
            top1 = row.values.get("probe.top1")
            if top1 is not None and row.method in METHOD_NAMES and row.arch == settings.get("arch"):
                identity = (row.method, row.pretrained_on, row.epochs, top1)
                found.setdefault(identity, (table, row))
    return list(found.values())
