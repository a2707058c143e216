"""The languages of parameter names: what is left of a key after its prefix -> torchvision's name.

Each function gives None for what is no tensor of a ResNet's backbone.
"""

from __future__ import annotations

import re

Part = str | None  # of a name
_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_TORCHVISION = re.compile(
    rf"conv1\.weight|bn1\.{_NORM}|layer[1-4]\.\d+\.("
    rf"conv[123]\.weight|bn[123]\.{_NORM}|downsample\.0\.weight|downsample\.1\.{_NORM})"
)
_DETECTRON2 = re.compile(
    rf"(?:stem|res([2-5])\.(\d+))\.(?:conv([123])|shortcut)\.(?:weight|norm\.{_NORM})"
)
# A batch norm's parts, as Detectron writes them (s, b), as Caffe2's SpatialBN calls its running
# blobs (rm, riv: the latter is a variance in spite of its name), and in words.
_CAFFE2_PARTS = {
    **{"s": "weight", "gamma": "weight", "b": "bias", "beta": "bias", "bias": "bias"},
    **{"rm": "running_mean", "running_mean": "running_mean"},
    **{"riv": "running_var", "running_var": "running_var"},
}
_CAFFE2 = re.compile(
    r"(?:res_(?=conv1_bn_))?(?:conv1|res([2-5])_(\d+)_branch(1|2[abc]))_"
    rf"(?:([wb])|bn_({'|'.join(_CAFFE2_PARTS)}))"
)
_CAFFE2_CONVOLUTIONS = {None: "1", "2a": "1", "2b": "2", "2c": "3", "1": None}


def from_torchvision(name: str) -> str | None:
    """torchvision's own names (timm's, OpenMMLab's and most projects' too)."""
    return name if _TORCHVISION.fullmatch(name) else None


def from_children(name: str) -> str | None:
    """`nn.Sequential(*resnet.children())`: 0 conv1, 1 bn1, 4..7 the stages."""
    index, _, rest = name.partition(".")
    children = {"0": "conv1", "1": "bn1", **{f"{i + 3}": f"layer{i}" for i in range(1, 5)}}
    return from_torchvision(f"{children[index]}.{rest}") if index in children else None


def from_detectron2(name: str) -> str | None:
    """`stem.conv1.weight`, `res2.0.conv1.norm.bias`, `res2.0.shortcut.weight` and so on."""
    match = _DETECTRON2.fullmatch(name)
    return from_torchvision(_joined(*match.groups())) if match else None


def from_caffe2(name: str) -> str | None:
    """`conv1_w`, `res_conv1_bn_s`, `res2_0_branch2a_w`, `res2_0_branch1_bn_b`: bottlenecks only.

    A convolution's bias (`conv1_b`) comes out as `conv1.bias`, which torchvision's ResNets do not
    have: the norm behind it takes it over.
    """
    match = _CAFFE2.fullmatch(name)
    if match is None:
        return None
    stage, block, branch, of_conv, of_norm = match.groups()
    conv, norm = _CAFFE2_CONVOLUTIONS[branch], _CAFFE2_PARTS.get(of_norm)
    return _joined(stage, block, conv, norm, "bias" if of_conv == "b" else "weight")


def _joined(stage: Part, block: Part, conv: Part, norm: Part, conv_part: str = "weight") -> str:
    """torchvision's name of a part; without a stage the stem's, without a number the shortcut's."""
    place = f"layer{int(stage) - 1}.{block}." if stage else ""
    if norm:
        return f"{place}{f'bn{conv}' if conv else 'downsample.1'}.{norm}"
    return f"{place}{f'conv{conv}' if conv else 'downsample.0'}.{conv_part}"


VOCABULARIES = {
    "torchvision": from_torchvision,
    "children": from_children,
    # either of both: a numbered name is never a word
    "children_or_torchvision": lambda name: from_children(name) or from_torchvision(name),
    "detectron2": from_detectron2,
    "caffe2": from_caffe2,
}
