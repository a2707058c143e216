"""The golden key lists: which file of which project each one is, and such a file with numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moco_det.weights.formats import BY_NAME
from moco_det.weights.tensors import TensorRef

GOLDEN = Path(__file__).parent / "golden"
Table = dict[str, Any]


def root(table: Table) -> Table:
    return table


def under(*path: str, **beside: object) -> Callable[[Table], Table]:
    """The table below these keys, with other entries beside the outermost."""

    def wrap(table: Table) -> Table:
        for key in reversed(path):
            table = {key: table}
        return {**table, **beside}

    return wrap


def apart(*tables: str) -> Callable[[Table], Table]:
    """Several tables: a list's keys are then `table:key`, `tables` the places of each."""

    def wrap(joined: Table) -> Table:
        whole: Table = {}
        for path in tables:
            *outer, last = path.split("/")
            inner = whole
            for key in outer:
                inner = inner.setdefault(key, {})
            start = f"{last}:"
            inner[last] = {
                k.removeprefix(start): v for k, v in joined.items() if k.startswith(start)
            }
        return whole

    return wrap


@dataclass(frozen=True)
class GoldenList:
    """`other` tensors of the other encoder and `head` others, as the default encoder sees them."""

    format: str
    architecture: str
    wrap: Callable[[Table], Table]
    other: int
    head: int
    encoders: tuple[str, ...]  # those the file has, the default first


Q, QK, OT, TS = ("query",), ("query", "key"), ("online", "target"), ("teacher", "student")
EMA = ("ema", "model")
STATE = under("state_dict")
PIXELS = {"format": "RGB", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
MODEL = under("model")
VISSL_TABLES = (
    "classy_state_dict/base_model/model/trunk",
    "classy_state_dict/base_model/model/heads",
    "classy_state_dict/loss",
)
BYOL_TABLES = ("online_network_state_dict", "target_network_state_dict")

# Written by the projects' own code: torchvision, timm, lightly, detectron2 and the builder of
# facebookresearch/moco. All others are written after the sources, at the versions in
# docs/weights.md.
LISTS: dict[str, GoldenList] = {
    "moco_det_1": GoldenList(
        "moco-det/1", "resnet18", under("encoder", format="moco-det/1", input=PIXELS), 0, 0, Q
    ),
    "moco_v1": GoldenList("facebookresearch/moco", "resnet18", STATE, 120, 6, QK),
    "moco_v2": GoldenList("facebookresearch/moco", "resnet18", STATE, 120, 10, QK),
    "moco_v3": GoldenList("facebookresearch/moco-v3", "resnet18", STATE, 120, 30, QK),
    "simsiam": GoldenList("facebookresearch/simsiam", "resnet18", STATE, 0, 25, Q),
    "lemniscate": GoldenList("lemniscate", "resnet18", under("state_dict", lemniscate=0), 0, 2, Q),
    "pycontrast": GoldenList("pycontrast", "resnet50", apart("model", "model_ema"), 318, 20, QK),
    "pixpro": GoldenList("pixpro", "resnet50", MODEL, 318, 47, QK),
    "swav_w2": GoldenList("swav", "resnet50_w2x", STATE, 0, 10, Q),
    "dino": GoldenList("dino", "resnet50", apart("student", "teacher"), 318, 16, TS),
    "byol_pytorch": GoldenList("byol-pytorch", "resnet18", root, 120, 153, OT),
    "byol_networks": GoldenList("byol-networks", "resnet18", apart(*BYOL_TABLES), 120, 18, OT),
    "byol_model": GoldenList("byol-model", "resnet50", MODEL, 318, 27, OT),
    "densecl": GoldenList("densecl", "resnet18", STATE, 120, 140, QK),
    "densecl_backbone": GoldenList(
        "openselfsup-backbone", "resnet50", under("state_dict", author="DenseCL"), 0, 0, Q
    ),
    "mmselfsup_densecl": GoldenList("densecl", "resnet18", STATE, 120, 21, QK),
    "openselfsup_moco": GoldenList("openselfsup", "resnet18", STATE, 120, 130, QK),
    "mmselfsup_moco": GoldenList("openselfsup", "resnet18", STATE, 120, 11, QK),
    "mmselfsup_moco_v3": GoldenList("openselfsup", "resnet18", STATE, 120, 37, QK),
    "mmselfsup_npid": GoldenList("openselfsup", "resnet18", STATE, 0, 3, Q),
    "mmpretrain_supervised": GoldenList("openselfsup", "resnet18", STATE, 0, 2, Q),
    "openselfsup_byol": GoldenList("openselfsup-byol", "resnet18", STATE, 120, 147, OT),
    "mmselfsup_byol": GoldenList("openselfsup-byol", "resnet18", STATE, 120, 28, OT),
    "vissl": GoldenList("vissl", "resnet50", apart(*VISSL_TABLES), 318, 10, QK),
    "vissl_trunk": GoldenList("vissl", "resnet50", under("model_state_dict"), 0, 0, Q),
    "solo_learn": GoldenList("solo-learn", "resnet18", STATE, 120, 12, QK),
    "lightly": GoldenList("lightly", "resnet18", STATE, 120, 8, QK),
    "lightly_benchmark_moco": GoldenList("lightly-benchmark", "resnet50", STATE, 318, 10, QK),
    "lightly_benchmark_byol": GoldenList("lightly-benchmark", "resnet50", STATE, 318, 26, QK),
    "lightly_benchmark_dino": GoldenList("lightly-dino", "resnet50", STATE, 318, 19, TS),
    "lightly_dino": GoldenList("lightly-dino", "resnet18", root, 120, 17, TS),
    "torchvision": GoldenList("torchvision", "resnet18", root, 0, 2, Q),
    "torchvision_training": GoldenList(
        "torchvision-training", "resnet18", apart("model", "model_ema"), 120, 5, EMA
    ),
    "timm_training": GoldenList(
        "timm-training", "resnet18", apart("state_dict", "state_dict_ema"), 120, 4, EMA
    ),
    "detectron2_bare": GoldenList("detectron2", "resnet18", MODEL, 0, 0, Q),
    "detectron2_fpn": GoldenList("detectron2", "resnet18", MODEL, 0, 42, Q),
    "detectron2_dc5": GoldenList("detectron2", "resnet18", MODEL, 0, 14, Q),
    "detectron2_c4": GoldenList("detectron2", "resnet50", MODEL, 0, 10, Q),
    "caffe2_msra": GoldenList("caffe2-msra", "resnet50", root, 0, 2, Q),
    "caffe2_msra_affine": GoldenList("caffe2-msra", "resnet50", under("blobs"), 0, 2, Q),
    "caffe2_resnext": GoldenList("caffe2-resnext", "resnext101_32x8d", root, 0, 318, Q),
    "caffe2_resnext_affine": GoldenList(
        "caffe2-resnext-affine", "resnext101_32x8d", under("blobs"), 0, 2, Q
    ),
}


def unread() -> np.ndarray:
    raise AssertionError("recognising a format must not read a tensor")


def golden(name: str) -> dict[str, TensorRef]:
    """The list's keys with their shapes and nothing behind them."""
    table = {}
    for line in (GOLDEN / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        key, sizes = line.split()
        shape = () if sizes == "-" else tuple(int(size) for size in sizes.split("x"))
        dtype = "float32" if shape else "int64"
        table[key] = TensorRef(dtype, shape, unread)
    return table


def filled(name: str, states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """A list's file with these state dicts (by encoder) as its encoders; heads are made tiny."""
    expected = LISTS[name]
    row = BY_NAME[expected.format]
    table: dict[str, Tensor] = {}
    for key, tensor in golden(name).items():
        names = {encoder: row.backbone_name(encoder, key) for encoder in expected.encoders}
        here = [(encoder, tv) for encoder, tv in names.items() if tv is not None]
        assert len(here) <= 1, "a key of two encoders"
        if not here:
            table[key] = torch.full([min(size, 3) for size in tensor.shape], 0.5)
        elif here[0][1] in states[here[0][0]]:
            table[key] = states[here[0][0]][here[0][1]]
    return expected.wrap(table)


def caffe_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The list's blobs: these arrays under Caffe2's names, and other numbers in other blobs."""
    row = BY_NAME[LISTS[name].format]
    blobs = {}
    for blob, tensor in golden(name).items():
        tv = row.backbone_name("query", blob)
        if tv in arrays:
            blobs[blob] = arrays[tv]
        else:  # biases of convolutions, the classifier
            blobs[blob] = np.full([min(size, 2**12) for size in tensor.shape], 0.25, np.float32)
    return blobs
