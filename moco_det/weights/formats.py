"""Whose checkpoint a file is: one row of rules a format, recognised from its keys.

A row says where the table of tensors lies, which prefix each encoder has, in which vocabulary the
rest of a name is, and which other names belong to a head. Nothing is guessed: a name that no rule
claims, or a file that two rows claim, is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from moco_det.weights.inert import Stub
from moco_det.weights.tensors import TensorRef, tensors_of

# Pixels on the scale 0..255; torchvision's published statistics times 255.
RGB_IMAGENET: dict[str, Any] = {
    "format": "RGB",
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
    "stride_in_1x1": False,
}
# The caffe models of MSRA that detectron2's own configs start from.
BGR_MSRA: dict[str, Any] = {
    "format": "BGR",
    "mean": [103.53, 116.28, 123.675],
    "std": [1.0, 1.0, 1.0],
    "stride_in_1x1": True,
}

# Vocabularies: the rest of a name -> torchvision's name, or None -------------------------------

_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_TORCHVISION = re.compile(
    rf"conv1\.weight|bn1\.{_NORM}|layer[1-4]\.\d+\.("
    rf"conv[123]\.weight|bn[123]\.{_NORM}|downsample\.0\.weight|downsample\.1\.{_NORM})"
)


def from_torchvision(name: str) -> str | None:
    return name if _TORCHVISION.fullmatch(name) else None


def from_children(name: str) -> str | None:
    """`nn.Sequential(*resnet.children())`: 0 conv1, 1 bn1, 4..7 the stages."""
    index, _, rest = name.partition(".")
    stem = {"0": "conv1", "1": "bn1"}.get(index)
    stage = {"4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}.get(index)
    return from_torchvision(f"{stem or stage}.{rest}") if stem or stage else None


_DETECTRON2: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"stem\.conv1\.weight"), lambda m: "conv1.weight"),
    (re.compile(rf"stem\.conv1\.norm\.{_NORM}"), lambda m: f"bn1.{m[1]}"),
    (
        re.compile(r"res([2-5])\.(\d+)\.conv([123])\.weight"),
        lambda m: f"layer{int(m[1]) - 1}.{m[2]}.conv{m[3]}.weight",
    ),
    (
        re.compile(rf"res([2-5])\.(\d+)\.conv([123])\.norm\.{_NORM}"),
        lambda m: f"layer{int(m[1]) - 1}.{m[2]}.bn{m[3]}.{m[4]}",
    ),
    (
        re.compile(r"res([2-5])\.(\d+)\.shortcut\.weight"),
        lambda m: f"layer{int(m[1]) - 1}.{m[2]}.downsample.0.weight",
    ),
    (
        re.compile(rf"res([2-5])\.(\d+)\.shortcut\.norm\.{_NORM}"),
        lambda m: f"layer{int(m[1]) - 1}.{m[2]}.downsample.1.{m[3]}",
    ),
)


def from_detectron2(name: str) -> str | None:
    for pattern, rename in _DETECTRON2:
        match = pattern.fullmatch(name)
        if match:
            return rename(match)
    return None


# Rows -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """One layout of checkpoint.

    `containers`: root keys under which the table of tensors may lie ("" is the root itself).
    `encoders`: choice -> prefixes (regular expressions) that a backbone key starts with; the first
    choice is the default. `head`: whole keys (regular expressions) that are not backbone.
    `marker`: a root key, and the text it must hold if any, that settles the matter.
    `input`: what the encoder was fed; None means that the file itself must say.
    """

    name: str
    read_from: str  # where the layout was learned
    containers: tuple[str, ...]
    encoders: Mapping[str, tuple[str, ...]]
    vocabulary: Callable[[str], str | None]
    head: tuple[str, ...]
    marker: tuple[str, str | None] | None = None
    input: Mapping[str, Any] | None = None
    recognised: bool = True  # False: only when named by --from


_DETECTRON2_PREFIXES = (
    r"backbone\.bottom_up\.(?=stem\.|res[2-5]\.)",
    r"backbone\.(?=stem\.|res[2-5]\.)",
    r"roi_heads\.(?=res5\.\d)",
    r"(?=stem\.|res[2-5]\.)",
)
_DETECTRON2_HEAD = (
    r"stem\.fc\..*",  # left behind by the converters that rename blindly
    r"(backbone\.(bottom_up\.)?)?linear\..*",
    r"backbone\.(fpn_|top_block|bottom_up\.res5_norm|res5_norm).*",
    r"(proposal_generator|anchor_generator|sem_seg_head|head)\..*",
    r"roi_heads\.(?!res5\.\d).*",
    r"pixel_mean|pixel_std",
)


def _detectron2(name: str, source: str, pixels: Mapping[str, Any] | None) -> Format:
    return Format(
        name=name,
        read_from=source,
        containers=("model", ""),
        encoders={"query": _DETECTRON2_PREFIXES},
        vocabulary=from_detectron2,
        head=_DETECTRON2_HEAD,
        input=pixels,
        recognised=name == "detectron2",
    )


FORMATS: tuple[Format, ...] = (
    Format(
        name="moco-det/1",
        read_from="this project's tools/pretrain.py",
        containers=("encoder",),
        encoders={"query": ("",)},
        vocabulary=from_torchvision,
        head=(r"fc\..*",),
        marker=("format", "moco-det/1"),
    ),
    Format(
        name="facebookresearch/moco",
        read_from="moco/builder.py and main_moco.py, v1 and v2",
        containers=("state_dict", ""),
        encoders={"query": (r"(module\.)?encoder_q\.",), "key": (r"(module\.)?encoder_k\.",)},
        vocabulary=from_torchvision,
        head=(r"(module\.)?encoder_[qk]\.fc\..*", r"(module\.)?queue(_ptr)?"),
        input=RGB_IMAGENET,
    ),
    Format(
        name="facebookresearch/moco-v3",
        read_from="moco/builder.py (ResNet encoders)",
        containers=("state_dict", ""),
        encoders={
            "query": (r"(module\.)?base_encoder\.",),
            "key": (r"(module\.)?momentum_encoder\.",),
        },
        vocabulary=from_torchvision,
        head=(r"(module\.)?(base|momentum)_encoder\.fc\..*", r"(module\.)?predictor\..*"),
        input=RGB_IMAGENET,
    ),
    Format(
        name="lemniscate",
        read_from="zhirongw/lemniscate.pytorch main.py (InstDisc)",
        containers=("state_dict",),
        encoders={"query": (r"(module\.)?",)},
        vocabulary=from_torchvision,
        head=(r"(module\.)?fc\..*",),
        marker=("lemniscate", None),
        input=RGB_IMAGENET,
    ),
    Format(
        name="torchvision",
        read_from="torchvision.models.resnet; also the ResNet names of timm",
        containers=("", "state_dict", "model"),
        encoders={"query": (r"(module\.)?",)},
        vocabulary=from_torchvision,
        head=(r"(module\.)?fc\..*",),
        input=RGB_IMAGENET,
    ),
    Format(
        name="solo-learn",
        read_from="solo/methods/base.py, mocov2plus.py",
        containers=("state_dict", ""),
        encoders={
            "query": (r"(backbone|encoder)\.",),
            "key": (r"momentum_(backbone|encoder)\.",),
        },
        vocabulary=from_torchvision,
        head=(
            r"(momentum_)?(projector|classifier|predictor|prototypes)\..*",
            r"queue(_ptr)?",
            r"(momentum_)?(backbone|encoder)\.fc\..*",
        ),
        input=RGB_IMAGENET,
    ),
    Format(
        name="lightly",
        read_from="examples/pytorch(_lightning)/moco.py",
        containers=("state_dict", ""),
        encoders={"query": (r"backbone\.",), "key": (r"backbone_momentum\.",)},
        vocabulary=from_children,
        head=(r"(projection|prediction|linear)_head(_momentum)?\..*", r"criterion\..*"),
        input=RGB_IMAGENET,
    ),
    _detectron2("detectron2", "detectron2/checkpoint and its state dicts", None),
    _detectron2("detectron2-rgb", "a detectron2 file whose INPUT.FORMAT was RGB", RGB_IMAGENET),
    _detectron2("detectron2-msra", "a detectron2 file trained from MSRA's R-50.pkl", BGR_MSRA),
    Format(
        name="timm",
        read_from="timm.models.resnet: the names of torchvision",
        containers=("", "state_dict"),
        encoders={"query": (r"(module\.)?",)},
        vocabulary=from_torchvision,
        head=(r"(module\.)?fc\..*",),
        input=RGB_IMAGENET,
        recognised=False,
    ),
)
BY_NAME: dict[str, Format] = {row.name: row for row in FORMATS}


@dataclass(frozen=True)
class Match:
    """A row that fits, with the table it was found in."""

    format: Format
    table: dict[str, TensorRef]


@dataclass(frozen=True)
class Sorted:
    """A table's keys by what they are; `tensors` and `counters` are under torchvision's names."""

    tensors: dict[str, TensorRef]
    counters: dict[str, TensorRef]
    other_encoder: int
    head: tuple[str, ...]
    unclaimed: tuple[str, ...]
    twice: tuple[str, ...]


def backbone_name(row: Format, encoder: str, key: str) -> str | None:
    """The torchvision name of a key, or None if it is not this encoder's backbone."""
    for prefix in row.encoders[encoder]:
        match = re.match(prefix, key)
        if match:
            name = row.vocabulary(key[match.end() :])
            if name is not None:
                return name
    return None


def sort_keys(row: Format, encoder: str, table: Mapping[str, TensorRef]) -> Sorted:
    """Every key of a table, claimed once: backbone, counter, other encoder, head, or nobody's."""
    tensors: dict[str, TensorRef] = {}
    counters: dict[str, TensorRef] = {}
    head, unclaimed, twice, other = [], [], [], 0
    others = [choice for choice in row.encoders if choice != encoder]
    for key, tensor in table.items():
        name = backbone_name(row, encoder, key)
        if name is not None:
            target = counters if name.endswith("num_batches_tracked") else tensors
            if name in target:
                twice.append(key)
            target[name] = tensor
        elif any(backbone_name(row, choice, key) for choice in others):
            other += 1
        elif any(re.fullmatch(pattern, key) for pattern in row.head):
            head.append(key)
        else:
            unclaimed.append(key)
    return Sorted(tensors, counters, other, tuple(head), tuple(unclaimed), tuple(twice))


def matches(root: Any, rows: Iterable[Format]) -> list[Match]:
    """The rows that fit: marker present, and the stem and the first block in the named place."""
    found: list[Match] = []
    if not isinstance(root, dict):
        return found
    for row in rows:
        if row.marker is not None:
            key, text = row.marker
            if key not in root or (text is not None and root[key] != text):
                continue
        for container in row.containers:
            inner = root if container == "" else root.get(container)
            if not isinstance(inner, dict) or isinstance(inner, Stub):
                continue
            table = tensors_of(inner)
            default = next(iter(row.encoders))
            names = {backbone_name(row, default, key) for key in table}
            if {"conv1.weight", "layer1.0.conv1.weight"} <= names:
                found.append(Match(row, table))
    marked = [match for match in found if match.format.marker is not None]
    return marked or found  # a marker settles the matter


def first_keys(root: Any, count: int = 5) -> str:
    """The names that a person would look at first, for an error's one line."""
    if not isinstance(root, dict):
        return f"no table of tensors but {type(root).__name__}" if root else "nothing"
    tables = [(f"{k}: ", tensors_of(v)) for k, v in root.items() if isinstance(v, dict)]
    tables.insert(0, ("", tensors_of(root)))
    label, table = max(tables, key=lambda item: len(item[1]))
    if not table:
        keys = ", ".join(str(key)[:60] for key in list(root)[:count])
        return f"no tensors under {keys}" if keys else "an empty table"
    return label + ", ".join(key[:80] for key in list(table)[:count])
