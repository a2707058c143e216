"""The initialisations of the matrix: what differs between the rows of a table, and nothing else.

`ARMS` are those of a ResNet-50, `TIMM_ARMS` those of timm's networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moco_det.results.matched import INPUT_KEYS
from moco_det.weights.formats import BGR_MSRA


@dataclass(frozen=True)
class Initialisation:
    """One arm of every table; `checkpoint` is what its `weights` are converted from.

    `method` and `row` say which published rows are this arm's: those of a method pre-trained on
    `data`, or one row by its key. `input` holds config keys that these weights demand and the base
    files, made for torchvision's input, do not have.
    """

    what: str
    weights: str = ""
    checkpoint: str = "CHECKPOINT"
    method: str = ""
    data: str = "imagenet1k"
    row: str = ""
    note: str = ""
    input: Mapping[str, Any] = field(default_factory=dict)


ARMS: dict[str, Initialisation] = {
    "random": Initialisation("random initialisation", method="random"),
    "sup": Initialisation(
        "torchvision's supervised ResNet-50 (IMAGENET1K_V1)",
        "weights/sup_r50.pkl",
        "resnet50-0676ba61.pth",
        row="imagenet_torchvision",
        note="none published with these weights; the papers' supervised row is sup_msra's",
    ),
    "sup_msra": Initialisation(
        "MSRA's supervised ResNet-50, detectron2's R-50.pkl",
        "weights/sup_msra_r50.pkl",
        "R-50.pkl",
        method="supervised",
        input={key: BGR_MSRA[name] for key, name in INPUT_KEYS.items()},
    ),
    "moco": Initialisation(
        "MoCo v1, 200 epochs",
        "weights/moco_v1_r50.pkl",
        "moco_v1_200ep_pretrain.pth.tar",
        method="moco_v1",
    ),
    "moco_ig1b": Initialisation(
        "MoCo v1 on a billion uncurated images (pretrain/moco_v1_r50_ig1b, not released)",
        "weights/moco_v1_ig1b_r50.pkl",
        method="moco_v1",
        data="instagram1b",
    ),
    "mocov2": Initialisation(
        "MoCo v2, 200 epochs",
        "weights/moco_v2_r50.pkl",
        "moco_v2_200ep_pretrain.pth.tar",
        method="moco_v2",
    ),
    "instdisc": Initialisation(
        "instance discrimination, the ResNet-50 of lemniscate.pytorch",
        "weights/inst_disc_r50.pkl",
        method="inst_disc",
    ),
    "membank": Initialisation(
        "the memory bank of the MoCo paper (METHOD memory_bank of `moco-det pretrain`, K 65536)",
        "weights/memory_bank_r50.pkl",
        method="memory_bank",
    ),
    "endtoend": Initialisation(
        "the MoCo paper's end-to-end mechanism (METHOD end_to_end of `moco-det pretrain`)",
        "weights/end_to_end_r50.pkl",
        method="end_to_end",
    ),
}

_RANDOM = Initialisation("timm's random initialisation", method="random")
# network of timm -> its arms
TIMM_ARMS: dict[str, dict[str, Initialisation]] = {
    "convnext_tiny": {
        "random": _RANDOM,
        "sup": Initialisation(
            "timm's supervised ConvNeXt-T (fb_in1k)",
            "weights/convnext_tiny_sup.pkl",
            "timm:convnext_tiny.fb_in1k",
        ),
        "dinov3": Initialisation(
            "DINOv3's ConvNeXt-T, distilled from a ViT-7B (lvd1689m)",
            "weights/convnext_tiny_dinov3.pkl",
            "timm:convnext_tiny.dinov3_lvd1689m",
        ),
    },
    "vit_small_patch16_224": {
        "random": _RANDOM,
        "sup": Initialisation(
            "timm's supervised ViT-S (augreg_in1k)",
            "weights/vit_small_sup.pkl",
            "timm:vit_small_patch16_224.augreg_in1k",
            method="supervised",
        ),
        "dino": Initialisation(
            "DINO's ViT-S",
            "weights/vit_small_dino.pkl",
            "timm:vit_small_patch16_224.dino",
        ),
    },
    "vit_small_patch16_dinov3": {
        "random": _RANDOM,
        "dinov3": Initialisation(
            "DINOv3's ViT-S, distilled from a ViT-7B (lvd1689m)",
            "weights/vit_small_dinov3.pkl",
            "timm:vit_small_patch16_dinov3.lvd1689m",
        ),
    },
    "swin_tiny_patch4_window7_224": {
        "random": _RANDOM,
        "sup": Initialisation(
            "timm's supervised Swin-T (ms_in1k)",
            "weights/swin_tiny_sup.pkl",
            "timm:swin_tiny_patch4_window7_224.ms_in1k",
            method="supervised",
        ),
        "moby": Initialisation(
            "MoBY's Swin-T, 300 epochs (github.com/SwinTransformer/Transformer-SSL)",
            "weights/swin_tiny_moby.pkl",
            "moby_swin_t_300ep_pretrained.pth --arch swin_tiny_patch4_window7_224 --prefix encoder",
            method="moby",
        ),
    },
}
