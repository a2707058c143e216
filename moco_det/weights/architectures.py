"""Which ResNet a set of shapes is, and every tensor it must have in both vocabularies.

Only numbers, no torch: tests hold them against moco_det.resnet's networks and torchvision's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moco_det.resnet.architectures import ARCHITECTURES, Architecture
from moco_det.results.matched import BUILDER_KEY, TIMM_BACKBONE

Shape = tuple[int, ...]

STAGES = ("stem", "res2", "res3", "res4", "res5")
TIMM_BY_NAME = "convert-weights takes a network of timm by --arch NAME"
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class BackboneTensor:
    """One tensor of a backbone under both of its names."""

    torchvision: str
    detectron2: str
    shape: Shape


def backbone_tensors(architecture: Architecture) -> list[BackboneTensor]:
    """Every tensor but the batch counters, in the order of the forward pass."""
    tensors = []
    for conv, norm, target, shape in _convolutions(architecture):
        tensors.append(BackboneTensor(f"{conv}.weight", f"{target}.weight", shape))
        for part in NORM_PARTS:
            tensors.append(BackboneTensor(f"{norm}.{part}", f"{target}.norm.{part}", shape[:1]))
    return tensors


def _convolutions(shape: Architecture) -> Iterator[tuple[str, str, str, Shape]]:
    """torchvision's names of each convolution and its norm, detectron2's name, the shape."""
    inputs, groups = shape.stem_out_channels, shape.num_groups
    yield "conv1", "bn1", "stem.conv1", (inputs, 3, 7, 7)
    for index, blocks in enumerate(shape.blocks):
        outputs = shape.res2_out_channels * 2**index
        width = groups * shape.width_per_group * 2**index
        for block in range(blocks):
            old, new = f"layer{index + 1}.{block}", f"res{index + 2}.{block}"
            if shape.bottleneck:
                sizes: list[Shape] = [
                    (width, inputs, 1, 1),
                    (width, width // groups, 3, 3),
                    (outputs, width, 1, 1),
                ]
            else:
                sizes = [(outputs, inputs, 3, 3), (outputs, outputs, 3, 3)]
            for n, size in enumerate(sizes, start=1):
                yield f"{old}.conv{n}", f"{old}.bn{n}", f"{new}.conv{n}", size
            if inputs != outputs:
                names = (f"{old}.downsample.0", f"{old}.downsample.1", f"{new}.shortcut")
                yield *names, (outputs, inputs, 1, 1)
            inputs = outputs


INCOMPLETE = ": save the whole network, or fetch the file again"


class UnknownArchitecture(ValueError):
    """The tensors are no ResNet of the table; the message says why."""


# Networks that are ResNets to their owners and others to a detector: what their names (without
# prefix) match, and why. timm's flags and those of other projects are meant alike.
_VARIANTS = {
    r"conv1\.0\.weight|stem\.0\.weight": "a deep stem of three 3x3 convolutions "
    "(ResNet-C, -D, -S, -T)",
    r"layer[1-4]\.\d+\.(se|se_module|attn|eca)\..*": "channel attention in its blocks (SE, ECA)",
    r"layer1\.0\.conv[12]\.(conv|paths)\..*": "selective or split kernels",
    r"(.*\.)?filt": "antialiased pooling (BlurPool)",
    r"layer[12]\.0\.downsample\.2\..*": "an average-pooled shortcut (ResNet-D)",
    r"stem\.conv1\.conv\.weight": "a stem of several convolutions",
    r"encoder[12]\.conv1\.weight": "two half networks for parts of the colour space (CMC)",
}


def variant(names: Iterable[str]) -> str | None:
    """What makes a network with these names another one than the table's ResNets, or None.

    A prefix before `conv1`, `layer1` and the like does not matter.
    """
    bare = {re.sub(r"^.*?(?=(conv1|stem|layer[1-4]|encoder[12])\.)", "", name) for name in names}
    for pattern, why in _VARIANTS.items():
        if any(re.fullmatch(pattern, name) for name in bare):
            return f"{why}, which the detectors' ResNets do not have; {TIMM_BY_NAME}"
    return None


def deduce(shapes: Mapping[str, Shape]) -> str:
    """The architecture's name, from torchvision names and their shapes.

    Raises UnknownArchitecture for other stems, widths and depths, and for missing tensors.
    """
    stem = shapes.get("conv1.weight", ())
    if stem[1:] != (3, 7, 7) or stem[0] == 0:
        raise UnknownArchitecture(
            f"the first convolution is {_text(stem)}, not 64x3x7x7 (a stem for small images?)"
        )
    blocks = [0, 0, 0, 0]
    for name in shapes:
        match = re.match(r"layer([1-4])\.(\d{1,3})\.", name)
        if match:
            stage = int(match[1]) - 1
            blocks[stage] = max(blocks[stage], int(match[2]) + 1)
    if "layer1.0.conv2.weight" not in shapes:
        raise UnknownArchitecture(f"layer1.0.conv2.weight is missing{INCOMPLETE}")
    second = shapes["layer1.0.conv2.weight"]
    if len(second) != 4 or second[1] == 0 or second[0] % second[1]:
        raise UnknownArchitecture(f"layer1.0.conv2.weight is {_text(second)}, no 3x3 convolution")
    bottleneck = "layer1.0.conv3.weight" in shapes
    groups, width = second[0] // second[1], second[1] if bottleneck else 64
    res2 = stem[0] * 4 if bottleneck else stem[0]
    found = Architecture(tuple(blocks), bottleneck, groups, width, stem[0], res2)
    for name, known in ARCHITECTURES.items():
        if known == found:
            check_shapes(name, shapes)
            return name
    raise UnknownArchitecture(f"{found}; known are {', '.join(ARCHITECTURES)}")


def check_shapes(architecture: str, shapes: Mapping[str, Shape]) -> None:
    """Raise UnknownArchitecture unless these are exactly the backbone's tensors."""
    expected = {t.torchvision: t.shape for t in backbone_tensors(ARCHITECTURES[architecture])}
    missing = [name for name in expected if name not in shapes]
    extra = [name for name in shapes if name not in expected]
    if missing:
        norms = {name for name in expected if name.endswith((".running_mean", ".running_var"))}
        why = " (no batch norm but GroupNorm?)" if set(missing) == norms else INCOMPLETE
        raise UnknownArchitecture(
            f"{architecture} lacks {len(missing)} of {len(expected)} backbone tensors: "
            f"{', '.join(missing[:3])}{why}"
        )
    if extra:
        raise UnknownArchitecture(f"{architecture} has no {', '.join(extra[:3])}")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise UnknownArchitecture(
                f"{name} is {_text(shapes[name])}, {architecture} has {_text(shape)}"
            )


def detector_keys(architecture: str) -> dict[str, Any]:
    """The config keys that give a detector this ResNet, or this network of timm."""
    if architecture in ARCHITECTURES:
        return dict(ARCHITECTURES[architecture].keys)
    return {BUILDER_KEY: TIMM_BACKBONE, "MODEL.TIMM.NAME": architecture}


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a single number"
