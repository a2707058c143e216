"""The checkpoints of the conversion table: true ones of the installed libraries, and constructed.

All weights are seeded noise that looks trained.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.weights.architectures import backbone_tensors
from moco_det.weights.formats import BY_NAME

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the golden lists lie in tests/

from tests.weights.checkpoints import in_detectron2_names, random_arrays  # noqa: E402
from tests.weights.golden_lists import LISTS, caffe_arrays, filled  # noqa: E402

State = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One checkpoint file: who made it, how to write it, and where its numbers go after that."""

    maker: str
    architecture: str
    write: Callable[[Path], None]
    suffix: str = ".pth"
    source_format: str | None = None
    back: tuple[str, ...] = ()


def state_of(architecture: str, seed: int = 5) -> State:
    """A torchvision state dict of seeded numbers, without classifier, with batch counters."""
    state: State = {}
    for name, array in random_arrays(architecture, seed).items():
        state[name] = torch.from_numpy(array)
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(seed)
    return state


def filled_network(make: Callable[[], nn.Module], architecture: str) -> nn.Module:
    """The network with the seeded numbers as its weights, and a classifier of zeros."""
    with torch.device("meta"):  # no time for random weights
        network = make()
    classifier = {n: torch.zeros(t.shape) for n, t in network.state_dict().items() if "fc." in n}
    network.load_state_dict({**classifier, **state_of(architecture)}, strict=True, assign=True)
    return network


def torchvisions(architecture: str) -> nn.Module:
    return filled_network(lambda: torchvision.models.get_model(architecture), architecture)


def version(name: str) -> str:
    return f"{name} {importlib.metadata.version(name).partition('+')[0]}"


def saving(make: Callable[[], Any]) -> Callable[[Path], None]:
    return lambda path: torch.save(make(), path)


# True checkpoints -------------------------------------------------------------------------------


def torchvision_cases() -> Iterator[Case]:
    for name in ARCHITECTURES:
        if name in torchvision.models.list_models():
            yield Case(
                version("torchvision"),
                name,
                saving(lambda name=name: torchvisions(name).state_dict()),
                back=("torchvision .pth", "timm .safetensors", "detectron2 .safetensors"),
            )


def timm_cases() -> Iterator[Case]:
    if importlib.util.find_spec("timm") is None:
        return
    import timm
    from safetensors.torch import save_file

    for name in ARCHITECTURES:
        if name in timm.list_models():
            yield Case(
                version("timm"),
                name,
                lambda path, name=name: save_file(
                    filled_network(lambda: timm.create_model(name), name).state_dict(), path
                ),
                suffix=".safetensors",
                source_format="timm",
                back=("timm .safetensors",),
            )


def lightly_cases() -> Iterator[Case]:
    if importlib.util.find_spec("lightly") is None:
        return
    from lightly.models.modules.heads import DINOProjectionHead, MoCoProjectionHead

    def moco(architecture: str) -> State:
        resnet = torchvisions(architecture)
        module = nn.Module()
        module.backbone = nn.Sequential(*list(resnet.children())[:-1])
        width = resnet.fc.in_features
        module.projection_head = MoCoProjectionHead(width, width, 128)
        module.backbone_momentum = copy.deepcopy(module.backbone)
        module.projection_head_momentum = copy.deepcopy(module.projection_head)
        return module.state_dict()

    def dino(architecture: str) -> State:
        resnet = torchvisions(architecture)
        module = nn.Module()
        module.student_backbone = nn.Sequential(*list(resnet.children())[:-1])
        width = resnet.fc.in_features
        module.student_head = DINOProjectionHead(width, 512, 64, 2048)
        module.teacher_backbone = copy.deepcopy(module.student_backbone)
        module.teacher_head = DINOProjectionHead(width, 512, 64, 2048)
        return module.state_dict()

    for architecture in ("resnet18", "resnet50"):
        yield Case(
            f"{version('lightly')}, MoCo",
            architecture,
            saving(lambda a=architecture: moco(a)),
            back=("torchvision .pth",),
        )
    yield Case(f"{version('lightly')}, DINO", "resnet18", saving(lambda: dino("resnet18")))


STANDARD = ["MODEL.ROI_HEADS.NAME", "StandardROIHeads"]
PYRAMID = ["p2", "p3", "p4", "p5"]
DETECTORS: dict[str, list[Any]] = {  # what differs from detectron2's defaults, which are C4
    "C4": [],
    "DC5": [
        *("MODEL.RESNETS.OUT_FEATURES", ["res5"], "MODEL.RESNETS.RES5_DILATION", 2),
        *("MODEL.RPN.IN_FEATURES", ["res5"], "MODEL.ROI_HEADS.IN_FEATURES", ["res5"]),
        *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 2),
        *STANDARD,
    ],
    "FPN": [
        *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.RPN.IN_FEATURES", PYRAMID),
        *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
        *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256]]),
        *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 2),
        *("MODEL.ROI_HEADS.IN_FEATURES", PYRAMID, *STANDARD),
    ],
}


def detectron2_cases() -> Iterator[Case]:
    if importlib.util.find_spec("detectron2") is None:
        return
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    def detector(kind: str, rgb: bool) -> dict[str, Any]:
        cfg = get_cfg()
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.RESNETS.STRIDE_IN_1X1 = not rgb
        cfg.merge_from_list(DETECTORS[kind])
        model = build_model(cfg)
        arrays = random_arrays("resnet50")
        state = model.state_dict()
        for tensor in backbone_tensors(ARCHITECTURES["resnet50"]):
            for prefix in ("backbone.bottom_up.", "backbone.", "roi_heads."):
                if prefix + tensor.detectron2 in state:
                    state[prefix + tensor.detectron2].copy_(
                        torch.from_numpy(arrays[tensor.torchvision])
                    )
        return {"model": state, "iteration": 1}

    for kind in DETECTORS:
        for name, rgb in (("detectron2-rgb", True), ("detectron2-msra", False)):
            yield Case(
                f"detectron2, {kind}",
                "resnet50",
                saving(lambda kind=kind, rgb=rgb: detector(kind, rgb)),
                source_format=name,
                back=("detectron2 .safetensors",),
            )


def own_cases() -> Iterator[Case]:
    from pretrain.encoders import ARCHITECTURES as ENCODERS

    pixels = {"format": "RGB", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

    def checkpoint(name: str) -> dict[str, Any]:
        network = filled_network(lambda: ENCODERS[name](nn.BatchNorm2d), name)
        encoder = {n: t for n, t in network.state_dict().items() if not n.startswith("fc.")}
        return {"format": "moco-det/1", "arch": name, "encoder": encoder, "input": pixels}

    for name in ENCODERS:
        yield Case(
            "pretrain/",
            name,
            saving(lambda name=name: checkpoint(name)),
            back=("torchvision .pth", "detectron2 .safetensors"),
        )


# Constructed ones -------------------------------------------------------------------------------


def constructed_cases() -> Iterator[Case]:
    for name, expected in LISTS.items():
        if BY_NAME[expected.format].affine:
            yield Case(f"list {name}", expected.architecture, caffe_writer(name), suffix=".pkl")
        elif expected.format == "detectron2":
            yield Case(
                f"list {name}",
                expected.architecture,
                saving(lambda name=name: constructed(name)),
                source_format="detectron2-rgb",
            )
        else:
            yield Case(
                f"list {name}", expected.architecture, saving(lambda name=name: constructed(name))
            )
    yield Case(
        "names of detectron2",
        "resnet50",
        detectron2_pickle,
        suffix=".pkl",
        back=("torchvision .pth", "timm .safetensors", "detectron2 .safetensors"),
    )
    yield Case(
        "names of torchvision",
        "resnet50",
        saving(lambda: {"state_dict": state_of("resnet50")}),
        source_format="torchvision-msra",
    )


def detectron2_pickle(path: Path) -> None:
    """As detectron2's tools/convert-torchvision-to-d2.py leaves it."""
    arrays = in_detectron2_names(random_arrays("resnet50"), "resnet50")
    file = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(file))


def constructed(name: str) -> dict[str, Any]:
    expected = LISTS[name]
    states = {
        encoder: state_of(expected.architecture, seed)
        for seed, encoder in enumerate(expected.encoders, start=5)
    }
    return filled(name, states)


def caffe_writer(name: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        blobs = caffe_arrays(name, random_arrays(LISTS[name].architecture))
        path.write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))

    return write


def all_cases() -> list[Case]:
    """Every file of the table that can be made here."""
    makers = (torchvision_cases, timm_cases, lightly_cases, detectron2_cases, own_cases)
    return [case for maker in (*makers, constructed_cases) for case in maker()]
