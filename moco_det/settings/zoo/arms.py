"""The initialisations of the matrix: what differs between the rows of a table, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moco_det.results.matched import INPUT_KEYS
from moco_det.weights.formats import BGR_MSRA


@dataclass(frozen=True)
class Arm:
    """One initialisation.

    `convert` is the line that makes `weights`. `method` and `row` say which published rows are
    this arm's: those of a method, or one row by its key. `input` holds config keys that these
    weights demand and the base files, made for torchvision's input, do not have.
    """

    what: str
    weights: str = ""
    convert: str = ""
    method: str = ""
    row: str = ""
    note: str = ""
    input: Mapping[str, Any] = field(default_factory=dict)


def _convert(checkpoint: str, weights: str) -> str:
    return f"python tools/convert_weights.py {checkpoint} {weights}"


ARMS: dict[str, Arm] = {
    "random": Arm("random initialisation", method="random"),
    "sup": Arm(
        "torchvision's supervised ResNet-50 (IMAGENET1K_V1)",
        weights="weights/sup_r50.pkl",
        convert=_convert("resnet50-0676ba61.pth", "weights/sup_r50.pkl"),
        row="imagenet_torchvision",
        note="none published with these weights; the papers' supervised row is sup_msra's",
    ),
    "sup_msra": Arm(
        "MSRA's supervised ResNet-50, detectron2's R-50.pkl",
        weights="weights/sup_msra_r50.pkl",
        convert=_convert("R-50.pkl", "weights/sup_msra_r50.pkl"),
        method="supervised",
        input={key: BGR_MSRA[name] for key, name in INPUT_KEYS.items()},
    ),
    "moco": Arm(
        "MoCo v1, 200 epochs",
        weights="weights/moco_v1_r50.pkl",
        convert=_convert("moco_v1_200ep_pretrain.pth.tar", "weights/moco_v1_r50.pkl"),
        method="moco_v1",
    ),
    "mocov2": Arm(
        "MoCo v2, 200 epochs",
        weights="weights/moco_v2_r50.pkl",
        convert=_convert("moco_v2_200ep_pretrain.pth.tar", "weights/moco_v2_r50.pkl"),
        method="moco_v2",
    ),
    "instdisc": Arm(
        "instance discrimination, the ResNet-50 of lemniscate.pytorch",
        weights="weights/inst_disc_r50.pkl",
        convert=_convert("CHECKPOINT", "weights/inst_disc_r50.pkl"),
        method="inst_disc",
    ),
    "membank": Arm(
        "the memory bank of the MoCo paper (METHOD memory_bank of tools/pretrain.py, K 65536)",
        weights="weights/memory_bank_r50.pkl",
        convert=_convert("CHECKPOINT", "weights/memory_bank_r50.pkl"),
        method="memory_bank",
    ),
    "endtoend": Arm(
        "the MoCo paper's end-to-end mechanism (METHOD end_to_end of tools/pretrain.py)",
        weights="weights/end_to_end_r50.pkl",
        convert=_convert("CHECKPOINT", "weights/end_to_end_r50.pkl"),
        method="end_to_end",
    ),
}
