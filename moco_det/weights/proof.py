"""The proof of a conversion: both networks, run on one fixed random input, agree at every stage.

The source's network is torchvision's, in its names; the converted one is moco_det.resnet's, in
detectron2's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import init
from torch.overrides import TorchFunctionMode

from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import Architecture
from moco_det.resnet.network import ResNet
from moco_det.weights.architectures import STAGES
from moco_det.weights.writing import as_tensor

# Relative to the stage's largest value. Both networks run the same float32 operations, so the
# difference is 0; should a processor sum in another order it is 1e-6; a wrong stride or a swapped
# tensor changes values by their own size.
TOLERANCE = 1e-4
INPUT_SHAPE = (1, 3, 96, 64)  # no square, so that a transposed axis shows
INPUT_SEED = 20200309  # any fixed number
DRAWING = {
    *(Tensor.normal_, Tensor.uniform_, init.normal_, init.uniform_),
    *(init.kaiming_normal_, init.kaiming_uniform_),
}


def forward_difference(
    source: Mapping[str, np.ndarray],
    target: Mapping[str, np.ndarray],
    architecture: Architecture,
    *,
    stride_in_1x1: bool,
    path: object,
) -> dict[str, float]:
    """Largest absolute feature difference of each stage; raises InputError beyond TOLERANCE.

    `source` is in torchvision's names, `target` in detectron2's.
    """
    ours = _converted_network(target, architecture, stride_in_1x1=stride_in_1x1)
    images = torch.randn(INPUT_SHAPE, generator=torch.Generator().manual_seed(INPUT_SEED))
    # With gradients enabled (no tensor wants one) the network leaves its norms outside the
    # convolutions: the source's order of operations, so that a renaming alone differs by exactly 0,
    # and the stored difference, with it the file's bytes, is the same on every processor.
    with torch.enable_grad(), one_thread():
        expected = source_features(source, architecture, images, stride_in_1x1=stride_in_1x1)
        features = ours(images)
    difference: dict[str, float] = {}
    for stage in STAGES:
        largest = float(expected[stage].abs().max())
        if not math.isfinite(largest):
            raise InputError(f"{path}: features of {stage} are not finite: nothing was written")
        if largest == 0:
            raise InputError(
                f"{path}: every feature of {stage} is 0 for a random image: the weights are dead "
                "or damaged; use another checkpoint"
            )
        difference[stage] = float((expected[stage] - features[stage]).abs().max())
        if not difference[stage] <= TOLERANCE * largest:
            raise InputError(
                f"{path}: the converted network differs from the source at {stage} by "
                f"{difference[stage]:.3g} (largest feature {largest:.3g}): nothing was written"
            )
    return difference


@contextmanager
def one_thread() -> Iterator[None]:
    """So that the order of summation is the same everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Undrawn(TorchFunctionMode):
    """The weights come from the file: no time goes into random ones, nor (2 s) into importing
    torch._dynamo, which drawing on the meta device does."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if function in DRAWING:
            return args[0] if args else named["tensor"]
        return function(*args, **named)


def _converted_network(
    arrays: Mapping[str, np.ndarray], architecture: Architecture, *, stride_in_1x1: bool
) -> ResNet:
    """moco_det.resnet with these arrays as its weights, without copying them."""
    with torch.device("meta"), Undrawn():
        network = ResNet(architecture, norm="BN", stride_in_1x1=stride_in_1x1)
    # counters, which no layer uses in evaluation, are zero
    counters = (name for name in network.state_dict() if name.endswith("batches_tracked"))
    state = {name: torch.zeros((), dtype=torch.long) for name in counters}
    state.update({name: as_tensor(array) for name, array in arrays.items()})
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def source_features(
    arrays: Mapping[str, np.ndarray],
    architecture: Architecture,
    images: Tensor,
    *,
    stride_in_1x1: bool,
) -> dict[str, Tensor]:
    """Each stage's features of torchvision's ResNet in evaluation, from arrays in its names.

    images: [N, 3, H, W] float32; a stage's features are [N, C, H/4, W/4] (stem, res2) to
    [N, C, H/32, W/32] (res5). Written as formulas, because importing torchvision takes longer than
    all the rest; a test holds it against torchvision's own network, bit for bit.
    """

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = as_tensor(arrays[f"{conv}.weight"])  # [C_out, C_in / groups, k, k]
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)
        mean, var, scale, shift = (
            as_tensor(arrays[f"{norm}.{part}"])
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, scale, shift)

    def block(x: Tensor, name: str, stride: int) -> Tensor:
        if architecture.bottleneck:
            first, second = (stride, 1) if stride_in_1x1 else (1, stride)
            y = F.relu(layer(x, f"{name}.conv1", f"{name}.bn1", first))
            y = F.relu(layer(y, f"{name}.conv2", f"{name}.bn2", second, architecture.num_groups))
            y = layer(y, f"{name}.conv3", f"{name}.bn3")
        else:
            y = F.relu(layer(x, f"{name}.conv1", f"{name}.bn1", stride))
            y = layer(y, f"{name}.conv2", f"{name}.bn2")
        if f"{name}.downsample.0.weight" in arrays:
            x = layer(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
        return F.relu(y + x)

    x = F.max_pool2d(F.relu(layer(images, "conv1", "bn1", 2)), 3, 2, 1)
    features = {STAGES[0]: x}
    for stage, blocks in enumerate(architecture.blocks, start=1):
        for index in range(blocks):
            x = block(x, f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1)
        features[STAGES[stage]] = x
    return features
