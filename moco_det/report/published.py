"""Published top-1 on ImageNet, to be shown beside probes of the same protocol, and only those.

All are single central crops of 224 px from networks pre-trained on ImageNet-1k without labels,
but for those whose name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

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

_MOCO = "MoCo (He et al. 2020)"
_MOCO2 = "MoCo v2 (Chen et al. 2020)"
_NPID = "InstDisc (Wu et al. 2018)"


@dataclass(frozen=True)
class Published:
    """One published accuracy in percent."""

    protocol: str
    arch: str
    name: str
    top1: float
    source: str


PUBLISHED: tuple[Published, ...] = (
    Published("linear", "resnet50", "MoCo v1, 200 epochs", 60.6, f"{_MOCO}, Table 1"),
    Published("linear", "resnet50", "memory bank, K=65536", 58.0, f"{_MOCO}, Figure 3"),
    Published("linear", "resnet50", "end-to-end, K=1024", 57.3, f"{_MOCO}, Figure 3"),
    Published("linear", "resnet50", "InstDisc", 54.0, f"{_MOCO}, Table 1"),
    Published("linear", "resnet50", "MoCo v2, 200 epochs", 67.5, f"{_MOCO2}, Table 1"),
    Published("linear", "resnet50", "MoCo v2, 800 epochs", 71.1, f"{_MOCO2}, Table 1"),
    Published("linear", "resnext50_32x8d", "MoCo v1, 200 epochs", 63.9, f"{_MOCO}, Table 1"),
    Published("linear", "resnet50_w2x", "MoCo v1, 200 epochs", 65.4, f"{_MOCO}, Table 1"),
    Published("linear", "resnet50_w4x", "MoCo v1, 200 epochs", 68.6, f"{_MOCO}, Table 1"),
    Published("knn", "resnet18", "InstDisc", 40.5, f"{_NPID}, Table 2, camera-ready"),
    Published("knn", "resnet50", "InstDisc", 42.5, f"{_NPID}, Table 2, camera-ready"),
    Published("knn", "resnet18", "InstDisc, released code", 41.0, "its README"),
    Published("knn", "resnet50", "InstDisc, released code", 46.8, "its README"),
    Published("finetune", "resnet50", "random", 76.5, f"{_MOCO}, A.7, epochs not stated"),
    Published("finetune", "resnet50", "MoCo v1", 77.0, f"{_MOCO}, A.7, epochs not stated"),
    Published(
        "finetune",
        "resnet50",
        "MoCo v1 on Instagram-1B",
        77.3,
        f"{_MOCO}, A.7, epochs not stated",
    ),
)


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
        row for row in PUBLISHED if (row.protocol, row.arch) == (protocol, settings.get("arch"))
    )
