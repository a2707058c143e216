"""What a format is: one row of rules, and the words that rows are written in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from moco_det.weights.formats.vocabularies import Vocabulary
from moco_det.weights.tensors import TensorRef

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
# Facebook's Caffe2 ResNeXt: the stride in the 3x3; files with a fused norm have the std fused too.
BGR_RESNEXT: dict[str, Any] = {
    **BGR_MSRA,
    "std": [57.375, 57.12, 58.395],
    "stride_in_1x1": False,
}
BGR_RESNEXT_AFFINE: dict[str, Any] = {**BGR_MSRA, "stride_in_1x1": False}

# What an encoder may be called: each project's own word. Trained by gradient are query, online,
# student and model; averages of them are key, target, teacher and ema.
ENCODERS = ("query", "key", "online", "target", "teacher", "student", "ema", "model")

Sign = Callable[[Mapping[str, TensorRef]], bool]


@dataclass(frozen=True)
class Format:
    """One layout of checkpoint.

    `containers`: places where the table of tensors may lie, each a root key, a path "a/b" or ""
    (the root); several in one tuple are joined, their keys then start with `place:`.
    `encoders`: choice -> prefixes (regular expressions) that a backbone key starts with; the first
    choice is the default. `head`: whole keys (regular expressions) that are not backbone.
    `marker`: a root key, and the texts it may hold if any, that settles the matter. `sign`: what
    else a table must show. `input`: what the encoder was fed; None means that the file itself must
    say. `affine`: norms may lack statistics and convolutions have biases, as Caffe's do.
    """

    name: str
    read_from: str  # where the layout was learned
    containers: tuple[tuple[str, ...], ...]
    encoders: Mapping[str, tuple[str, ...]]
    vocabulary: Vocabulary
    head: tuple[str, ...]
    marker: tuple[str, tuple[str, ...] | None] | None = None
    sign: Sign | None = None
    input: Mapping[str, Any] | None = None
    recognised: bool = True  # False: only when named by --from
    affine: bool = False


STATE_DICT = (("state_dict",), ("",))
MODEL = (("model",),)


def has(pattern: str) -> Sign:
    """A sign: some key starts like this."""
    start = re.compile(pattern)
    return lambda table: any(start.match(key) for key in table)


PLAIN = (r"(module\.)?",)
