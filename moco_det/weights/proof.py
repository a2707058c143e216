"""What must hold before a converted file is written.

First without torch: every number finite, every variance positive. Then with it: the source's
network (torchvision's, in the source's names) and the converted one (moco_det.resnet, in the
target's names) are run on one fixed random input and compared stage by stage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from moco_det.errors import InputError
from moco_det.weights.architectures import GEOMETRIES, STAGES, Geometry

# Relative to the stage's largest value. Both networks run the same float32 operations: what is left
# is the order of summation; a wrong stride or a swapped tensor changes values by their own size.
TOLERANCE = 1e-4
INPUT_SHAPE = (2, 3, 96, 64)  # no square, so that a transposed axis shows
INPUT_SEED = 20200309  # any fixed number


def check_numbers(arrays: Mapping[str, np.ndarray], *, path: object) -> None:
    """Raise InputError unless all values are finite and all BN variances positive."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            count = int(array.size - np.isfinite(array).sum())
            raise InputError(
                f"{path}: {name} holds {count} values that are not finite: the training diverged "
                "or the file is damaged; use an earlier checkpoint"
            )
        if name.endswith("running_var") and not (array > 0).all():
            raise InputError(
                f"{path}: {name} has variances that are not positive (least {array.min():g}): "
                "the file is damaged; fetch or save it again"
            )


def untrained(arrays: Mapping[str, np.ndarray]) -> str | None:
    """Why these weights look as if nobody had trained them, or None; torchvision's names.

    An untrained BN is weight 1 (or 0, the zero-initialised last one), bias 0, mean 0, variance 1;
    torchvision draws convolutions with Kaiming's deviation sqrt(2 / (out_channels * k * k)).
    """
    affine = [a for n, a in arrays.items() if a.ndim == 1 and n.endswith(".weight")]
    plain_weight = all((a == 1).all() or (a == 0).all() for a in affine)
    plain_bias = all(not a.any() for n, a in arrays.items() if n.endswith(".bias"))
    plain_mean = all(not a.any() for n, a in arrays.items() if n.endswith("running_mean"))
    plain_var = all((a == 1).all() for n, a in arrays.items() if n.endswith("running_var"))
    if not (plain_weight and plain_bias):
        return None
    convolutions = [a for a in arrays.values() if a.ndim == 4]
    near = sum(abs(kaiming_ratio(a) - 1) < 0.03 for a in convolutions)
    kaiming = near >= 0.9 * len(convolutions)
    if not (kaiming or (plain_mean and plain_var)):
        return None
    signs = ["batch norm weights all 1 and biases all 0"]
    if plain_mean and plain_var:
        signs.append("running means 0 and variances 1")
    if kaiming:
        signs.append(f"{near} of {len(convolutions)} convolutions with Kaiming's deviation")
    return "these look like random weights: " + ", ".join(signs)


def kaiming_ratio(weight: np.ndarray) -> float:
    """Standard deviation of a convolution over that of Kaiming's fan-out initialisation."""
    expected = math.sqrt(2 / (weight.shape[0] * weight.shape[2] * weight.shape[3]))
    return float(weight.std(dtype=np.float64)) / expected


def forward_difference(
    source: Mapping[str, np.ndarray],
    target: Mapping[str, np.ndarray],
    *,
    architecture: str,
    stride_in_1x1: bool,
    path: object,
) -> dict[str, float]:
    """Largest absolute feature difference of each stage; raises InputError beyond TOLERANCE.

    `source` is in torchvision's names, `target` in detectron2's.
    """
    import torch

    from moco_det.resnet import ARCHITECTURES, ResNet

    with torch.device("meta"):  # the weights come from the file, no time is spent on random ones
        ours = ResNet.from_architecture(
            ARCHITECTURES[architecture], norm="BN", stride_in_1x1=stride_in_1x1
        )
    ours.load_state_dict(_state(ours, target), strict=True, assign=True)
    ours.eval()
    images = torch.randn(INPUT_SHAPE, generator=torch.Generator().manual_seed(INPUT_SEED))
    with torch.inference_mode():
        expected = _torchvision_features(
            source, GEOMETRIES[architecture], images, stride_in_1x1=stride_in_1x1
        )
        features = ours(images)
    difference: dict[str, float] = {}
    for stage in STAGES:
        left, right = expected[stage], features[stage]
        largest = float(left.abs().max())
        if left.shape != right.shape or not math.isfinite(largest):
            raise InputError(
                f"{path}: features of {stage} are not finite or of another shape "
                f"({tuple(left.shape)} and {tuple(right.shape)}): nothing was written"
            )
        difference[stage] = float((left - right).abs().max())
        if not difference[stage] <= TOLERANCE * max(largest, 1e-12):
            raise InputError(
                f"{path}: the converted network differs from the source at {stage} by "
                f"{difference[stage]:.3g} (largest feature {largest:.3g}): nothing was written"
            )
    return difference


def _state(module: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A whole state dict for a module built on the meta device; counters, which no layer uses in
    evaluation, are zero."""
    import torch

    state: dict[str, Any] = {}
    for name in module.state_dict():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.long)
    # A read-only array would make torch warn; nothing writes to these tensors.
    state.update({name: _tensor(array) for name, array in arrays.items()})
    return state


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _torchvision_features(
    arrays: Mapping[str, np.ndarray], geometry: Geometry, images: Any, *, stride_in_1x1: bool
) -> dict[str, Any]:
    import torch
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    with torch.device("meta"):
        model = ResNet(
            Bottleneck if geometry.bottleneck else BasicBlock,
            list(geometry.blocks),
            groups=geometry.groups,
            width_per_group=geometry.width_per_group,
        )
        model.fc = torch.nn.Identity()
    model.load_state_dict(_state(model, arrays), strict=True, assign=True)
    model.eval()
    if stride_in_1x1 and geometry.bottleneck:
        for stage in (model.layer2, model.layer3, model.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    features = {"stem": x}
    layers = (model.layer1, model.layer2, model.layer3, model.layer4)
    for name, stage in zip(STAGES[1:], layers, strict=True):
        x = stage(x)
        features[name] = x
    return features
