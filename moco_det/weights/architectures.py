"""Which ResNet a set of shapes is, and every tensor it must have in both vocabularies.

Only numbers, no torch: the same table is held against moco_det.resnet by a test.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]

STAGES = ("stem", "res2", "res3", "res4", "res5")
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Geometry:
    """The numbers of He et al. 2016 (blocks), Xie et al. 2017 (groups) and the wide variants.

    `width_per_group` is the 3x3 convolution's of the first stage (128 in torchvision's wide
    ResNets); `factor` scales every layer, the stem's too (MoCo paper, Table 1, R50w2x and w4x).
    """

    bottleneck: bool
    blocks: tuple[int, int, int, int]
    groups: int = 1
    width_per_group: int = 64
    factor: float = 1

    def __str__(self) -> str:
        block = "bottleneck" if self.bottleneck else "basic"
        blocks = "-".join(map(str, self.blocks))
        wide = f", all channels {self.factor:g}x" if self.factor != 1 else ""
        groups = "1 group" if self.groups == 1 else f"{self.groups} groups"
        return f"{block} blocks {blocks}, {groups} of width {self.width_per_group}{wide}"

    @property
    def keys(self) -> dict[str, int]:
        """The config keys that make a detector's ResNet this one."""
        stem = int(64 * self.factor)
        # the key is of bottlenecks alone: basic blocks leave it at its default
        width = int(self.width_per_group * self.factor) if self.bottleneck else 64
        layers = 2 + sum(self.blocks) * (3 if self.bottleneck else 2)
        return {
            "MODEL.RESNETS.DEPTH": layers,
            "MODEL.RESNETS.NUM_GROUPS": self.groups,
            "MODEL.RESNETS.WIDTH_PER_GROUP": width,
            "MODEL.RESNETS.STEM_OUT_CHANNELS": stem,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": stem * (4 if self.bottleneck else 1),
        }


GEOMETRIES: dict[str, Geometry] = {
    "resnet18": Geometry(False, (2, 2, 2, 2)),
    "resnet34": Geometry(False, (3, 4, 6, 3)),
    "resnet50": Geometry(True, (3, 4, 6, 3)),
    "resnet101": Geometry(True, (3, 4, 23, 3)),
    "resnet152": Geometry(True, (3, 8, 36, 3)),
    "resnext50_32x4d": Geometry(True, (3, 4, 6, 3), 32, 4),
    "resnext50_32x8d": Geometry(True, (3, 4, 6, 3), 32, 8),
    "resnext101_32x4d": Geometry(True, (3, 4, 23, 3), 32, 4),
    "resnext101_32x8d": Geometry(True, (3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": Geometry(True, (3, 4, 23, 3), 64, 4),
    "wide_resnet50_2": Geometry(True, (3, 4, 6, 3), 1, 128),
    "wide_resnet101_2": Geometry(True, (3, 4, 23, 3), 1, 128),
    "resnet18_w0.5x": Geometry(False, (2, 2, 2, 2), factor=0.5),
    "resnet18_w0.25x": Geometry(False, (2, 2, 2, 2), factor=0.25),
    "resnet34_w0.5x": Geometry(False, (3, 4, 6, 3), factor=0.5),
    "resnet34_w0.25x": Geometry(False, (3, 4, 6, 3), factor=0.25),
    "resnet50_w2x": Geometry(True, (3, 4, 6, 3), factor=2),
    "resnet50_w4x": Geometry(True, (3, 4, 6, 3), factor=4),
}


@dataclass(frozen=True)
class BackboneTensor:
    """One tensor of a backbone under both of its names."""

    torchvision: str
    detectron2: str
    shape: Shape


def backbone_tensors(geometry: Geometry) -> tuple[BackboneTensor, ...]:
    """Every tensor but the batch counters, in the order of the forward pass."""
    return tuple(_tensors(geometry))


def _tensors(geometry: Geometry) -> Iterator[BackboneTensor]:
    inputs = int(64 * geometry.factor)
    yield from _conv("conv1", "bn1", "stem.conv1", (inputs, 3, 7, 7))
    for stage in range(1, 5):
        planes = int(64 * geometry.factor) * 2 ** (stage - 1)
        outputs = planes * 4 if geometry.bottleneck else planes
        width = planes * geometry.width_per_group // 64 * geometry.groups
        for block in range(geometry.blocks[stage - 1]):
            old, new = f"layer{stage}.{block}.", f"res{stage + 1}.{block}."
            if geometry.bottleneck:
                shapes: tuple[Shape, ...] = (
                    (width, inputs, 1, 1),
                    (width, width // geometry.groups, 3, 3),
                    (outputs, width, 1, 1),
                )
            else:
                shapes = ((planes, inputs, 3, 3), (planes, planes, 3, 3))
            for index, shape in enumerate(shapes, start=1):
                yield from _conv(f"{old}conv{index}", f"{old}bn{index}", f"{new}conv{index}", shape)
            if inputs != outputs:
                shape = (outputs, inputs, 1, 1)
                yield from _conv(
                    f"{old}downsample.0", f"{old}downsample.1", f"{new}shortcut", shape
                )
            inputs = outputs


def _conv(conv: str, norm: str, target: str, shape: Shape) -> Iterator[BackboneTensor]:
    yield BackboneTensor(f"{conv}.weight", f"{target}.weight", shape)
    for part in NORM_PARTS:
        yield BackboneTensor(f"{norm}.{part}", f"{target}.norm.{part}", shape[:1])


INCOMPLETE = ": save the whole network, or fetch the file again"


class UnknownArchitecture(ValueError):
    """The tensors are no ResNet of the table; the message says why."""


# Networks that are ResNets to their owners and others to a detector: (names, why), on names
# without prefix. timm's flags and those of other projects are meant alike.
_VARIANTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"conv1\.0\.weight|stem\.0\.weight"),
        "a deep stem of three 3x3 convolutions (ResNet-C, -D, -S, -T)",
    ),
    (
        re.compile(r"layer[1-4]\.\d+\.(se|se_module|attn|eca)\..*"),
        "channel attention in its blocks (SE, ECA)",
    ),
    (re.compile(r"layer1\.0\.conv[12]\.(conv|paths)\..*"), "selective or split kernels"),
    (
        re.compile(r"(.*\.)?filt"),
        "antialiased pooling (BlurPool)",
    ),
    (
        re.compile(r"layer[12]\.0\.downsample\.2\..*"),
        "an average-pooled shortcut (ResNet-D)",
    ),
    (re.compile(r"stem\.conv1\.conv\.weight"), "a stem of several convolutions"),
    (
        re.compile(r"encoder[12]\.conv1\.weight"),
        "two half networks for parts of the colour space (CMC)",
    ),
)


def variant(names: Iterable[str]) -> str | None:
    """What makes a network with these names another one than the table's ResNets, or None.

    A prefix before `conv1`, `layer1` and the like does not matter.
    """
    bare = {re.sub(r"^.*?(?=(conv1|stem|layer[1-4]|encoder[12])\.)", "", name) for name in names}
    for pattern, why in _VARIANTS:
        if any(pattern.fullmatch(name) for name in bare):
            return f"{why}, which the detectors' ResNets do not have"
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
    factor = stem[0] / 64
    geometry = Geometry(
        bottleneck="layer1.0.conv3.weight" in shapes,
        blocks=(blocks[0], blocks[1], blocks[2], blocks[3]),
        groups=second[0] // second[1],
        width_per_group=int(second[1] / factor),
        factor=factor,
    )
    for name, known in GEOMETRIES.items():
        if known == geometry:
            check_shapes(name, shapes)
            return name
    raise UnknownArchitecture(f"{geometry}; known are {', '.join(GEOMETRIES)}")


def check_shapes(architecture: str, shapes: Mapping[str, Shape]) -> None:
    """Raise UnknownArchitecture unless these are exactly the backbone's tensors."""
    expected = {t.torchvision: t.shape for t in backbone_tensors(GEOMETRIES[architecture])}
    missing = [name for name in expected if name not in shapes]
    extra = [name for name in shapes if name not in expected]
    if missing:
        norms = {name for name in expected if name.endswith((".running_mean", ".running_var"))}
        why = " (no batch norm but GroupNorm?)" if set(missing) == norms else ""
        raise UnknownArchitecture(
            f"{architecture} lacks {len(missing)} of {len(expected)} backbone tensors: "
            + ", ".join(missing[:3])
            + (why or INCOMPLETE)
        )
    if extra:
        raise UnknownArchitecture(f"{architecture} has no {', '.join(extra[:3])}")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise UnknownArchitecture(
                f"{name} is {_text(shapes[name])}, {architecture} has {_text(shape)}"
            )


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a single number"
