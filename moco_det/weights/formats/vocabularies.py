"""The languages of parameter names: what is left of a key after its prefix -> torchvision's name.

Each function gives None for what is no tensor of a ResNet's backbone.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Vocabulary = Callable[[str], "str | None"]

_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_TORCHVISION = re.compile(
    rf"conv1\.weight|bn1\.{_NORM}|layer[1-4]\.\d+\.("
    rf"conv[123]\.weight|bn[123]\.{_NORM}|downsample\.0\.weight|downsample\.1\.{_NORM})"
)


def from_torchvision(name: str) -> str | None:
    """torchvision's own names (timm's, OpenMMLab's and most projects' too)."""
    return name if _TORCHVISION.fullmatch(name) else None


def from_children(name: str) -> str | None:
    """`nn.Sequential(*resnet.children())`: 0 conv1, 1 bn1, 4..7 the stages."""
    index, _, rest = name.partition(".")
    stem = {"0": "conv1", "1": "bn1"}.get(index)
    stage = {"4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}.get(index)
    return from_torchvision(f"{stem or stage}.{rest}") if stem or stage else None


def from_children_or_torchvision(name: str) -> str | None:
    """Either of both: a numbered name is never a word."""
    return from_children(name) or from_torchvision(name)


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
    """`stem.conv1.weight`, `res2.0.conv1.norm.bias`, `res2.0.shortcut.weight` and so on."""
    for pattern, rename in _DETECTRON2:
        match = pattern.fullmatch(name)
        if match:
            return rename(match)
    return None


# A batch norm's parts, as Detectron writes them (s, b), as Caffe2's SpatialBN calls its running
# blobs (rm, riv: the latter is a variance in spite of its name), and in words.
_CAFFE2_PARTS = {
    "s": "weight",
    "gamma": "weight",
    "b": "bias",
    "beta": "bias",
    "bias": "bias",
    "rm": "running_mean",
    "running_mean": "running_mean",
    "riv": "running_var",
    "running_var": "running_var",
}
_CAFFE2_NORM = rf"bn_({'|'.join(_CAFFE2_PARTS)})"
_CAFFE2_STEM = re.compile(rf"conv1_([wb])|(?:res_)?conv1_{_CAFFE2_NORM}")
_CAFFE2_BLOCK = re.compile(rf"res([2-5])_(\d+)_branch(1|2[abc])_(?:([wb])|{_CAFFE2_NORM})")
_CAFFE2_LAYERS = {
    "1": ("downsample.0", "downsample.1"),
    "2a": ("conv1", "bn1"),
    "2b": ("conv2", "bn2"),
    "2c": ("conv3", "bn3"),
}


def from_caffe2(name: str) -> str | None:
    """`conv1_w`, `res_conv1_bn_s`, `res2_0_branch2a_w`, `res2_0_branch1_bn_b`: bottlenecks only.

    A convolution's bias (`conv1_b`) comes out as `conv1.bias`, which torchvision's ResNets do not
    have: the norm behind it takes it over.
    """
    stem = _CAFFE2_STEM.fullmatch(name)
    if stem:
        return _caffe2_name("conv1", "bn1", stem[1], stem[2])
    block = _CAFFE2_BLOCK.fullmatch(name)
    if not block:
        return None
    place = f"layer{int(block[1]) - 1}.{block[2]}."
    conv, norm = _CAFFE2_LAYERS[block[3]]
    return _caffe2_name(place + conv, place + norm, block[4], block[5])


def _caffe2_name(conv: str, norm: str, of_conv: str | None, of_norm: str | None) -> str:
    if of_conv is not None:
        return f"{conv}.{'weight' if of_conv == 'w' else 'bias'}"
    return f"{norm}.{_CAFFE2_PARTS[of_norm or '']}"
