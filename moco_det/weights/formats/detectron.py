"""Formats of detectron2 and, in Caffe2's names, of Detectron before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moco_det.weights.formats.row import (
    BGR_MSRA,
    BGR_RESNEXT,
    BGR_RESNEXT_AFFINE,
    RGB_IMAGENET,
    Format,
    Sign,
    has,
)
from moco_det.weights.formats.vocabularies import from_caffe2, from_detectron2
from moco_det.weights.tensors import TensorRef

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
        containers=(("model",), ("",)),
        encoders={"query": _DETECTRON2_PREFIXES},
        vocabulary=from_detectron2,
        head=_DETECTRON2_HEAD,
        input=pixels,
        recognised=name == "detectron2",
    )


_CAFFE2_HEAD = (
    r".*_momentum",
    r"lr|model_iter|weight_order",
    r"(fc1000|pred|fc6|fc7|cls_score|bbox_pred|conv_rpn|rpn|fpn|mask|conv5_mask|_\[mask\]|"
    r"conv_fcn|kps|kp|retnet|head)_.*",
)


def _grouped(table: Mapping[str, TensorRef]) -> bool:
    """Whether the first 3x3 convolution has groups: a ResNeXt."""
    middle = table.get("res2_0_branch2b_w")
    return middle is not None and len(middle.shape) == 4 and middle.shape[0] != middle.shape[1]


_has_statistics = has(r".*_bn_(rm|riv|running_mean|running_var)$")


def _caffe2(name: str, source: str, sign: Sign, pixels: Mapping[str, Any]) -> Format:
    return Format(
        name=name,
        read_from=source,
        containers=(("blobs",), ("model",), ("",)),
        encoders={"query": ("",)},
        vocabulary=from_caffe2,
        head=_CAFFE2_HEAD,
        sign=sign,
        input=pixels,
        affine=True,
    )


DETECTRON = (
    _detectron2("detectron2", "detectron2/checkpoint and its state dicts", None),
    _detectron2("detectron2-rgb", "a detectron2 file whose INPUT.FORMAT was RGB", RGB_IMAGENET),
    _detectron2("detectron2-msra", "a detectron2 file trained from MSRA's R-50.pkl", BGR_MSRA),
    _caffe2(
        "caffe2-msra",
        "detectron2 checkpoint/c2_model_loading.py, catalog.py; Detectron pickle_caffe_blobs.py",
        lambda table: not _grouped(table),
        BGR_MSRA,
    ),
    _caffe2(
        "caffe2-resnext",
        "detectron2 checkpoint/c2_model_loading.py and its X_101_32x8d configs",
        lambda table: _grouped(table) and _has_statistics(table),
        BGR_RESNEXT,
    ),
    _caffe2(
        "caffe2-resnext-affine",
        "detectron2 checkpoint/catalog.py: Detectron's ResNeXt with a fused norm",
        lambda table: _grouped(table) and not _has_statistics(table),
        BGR_RESNEXT_AFFINE,
    ),
)
