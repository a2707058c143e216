"""Published top-1 accuracies to stand beside probes of the same protocol, and only those.

All are single central crops of 224 px from networks pre-trained on ImageNet-1k without labels,
but for those whose name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from moco_det.results.published import METHOD_NAMES, find_table

# Classes, training and validation images of ImageNet-1k (ILSVRC 2012).
IMAGENET = (1000, 1281167, 50000)

# The settings of each protocol as published; a probe with others is not comparable.
SETTINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "knn": {"size": 224, "k": 200, "temperature": 0.07, "features": "head"},
        "linear": {
            "size": 224,
            "epochs": 100,
            "batch": 256,
            "head_lr": 30.0,
            "weight_decay": 0.0,
            "schedule": "step",
            "milestones": [60, 80],
            "gamma": 0.1,
        },
        "finetune": {"size": 224, "epochs": 100, "batch": 256},
    }
)

# protocol -> the published tables that were measured by it
TABLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "knn": ("npid.table2_imagenet_cvpr", "npid.repo_readme"),
        "linear": (
            "moco_v1.table1",
            "moco_v1.fn2_membank_nce",
            "moco_v2.linear",
            "moco_repo.linear",
        ),
        "finetune": ("moco_v1.appendix_imagenet_ft",),
    }
)


@dataclass(frozen=True)
class Published:
    """One published accuracy in percent."""

    protocol: str
    arch: str
    name: str
    top1: float
    source: str


@lru_cache(maxsize=1)
def published_accuracies() -> tuple[Published, ...]:
    """The accuracies of the methods that this project trains; each number of a source once."""
    found: list[Published] = []
    for protocol, tables in TABLES.items():
        seen: set[tuple[Any, ...]] = set()
        for table in map(find_table, tables):
            for row in table.rows:
                top1 = row.values.get("probe.top1")
                identity = (row.arch, row.method, row.pretrained_on, row.epochs, top1)
                if top1 is None or row.method not in METHOD_NAMES or identity in seen:
                    continue
                seen.add(identity)
                found.append(Published(protocol, row.arch, row.label, top1, table.citation))
    return tuple(found)


def comparable(
    protocol: str, settings: Mapping[str, Any], *, classes: int, train: int, test: int
) -> tuple[Published, ...]:
    """What was published of this protocol, these settings, this data; mostly nothing."""
    wanted = SETTINGS.get(protocol)
    if wanted is None or (classes, train, test) != IMAGENET:
        return ()
    if any(settings.get(key) != value for key, value in wanted.items()):
        return ()
    return tuple(
        row
        for row in published_accuracies()
        if (row.protocol, row.arch) == (protocol, settings.get("arch"))
    )
