"""What must hold before a converted file is written.

First without torch: every number finite, every variance positive. Then with it: the source's
network (torchvision's, in its names) and the converted one (moco_det.resnet, in detectron2's) are
run on one fixed random input and compared stage by stage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import ARCHITECTURES, Architecture
from moco_det.weights.architectures import STAGES

# Relative to the stage's largest value. Both networks run the same float32 operations, so the
# difference is 0; should a processor sum in another order it is 1e-6; a wrong stride or a swapped
# tensor changes values by their own size.
TOLERANCE = 1e-4
INPUT_SHAPE = (1, 3, 96, 64)  # no square, so that a transposed axis shows
# Fresh networks of every usual initialisation stay below 1.7; 250 steps of MoCo reach 13.
UNEVEN = 2.5
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

    Either every batch norm is as it starts (weight 1, or 0 where the last one is zero-initialised,
    bias 0, mean 0, variance 1), or every convolution spreads its numbers as evenly as independent
    draws do, whatever their distribution: one step of training leaves that so, a thousand do not.
    """
    affine = [a for n, a in arrays.items() if a.ndim == 1 and n.endswith(".weight")]
    plain = all((a == 1).all() or (a == 0).all() for a in affine) and all(
        not a.any() for n, a in arrays.items() if n.endswith(".bias")
    )
    # detectron2's frozen norm starts with a variance of 1 - 1e-5
    still = all(not a.any() for n, a in arrays.items() if n.endswith("running_mean")) and all(
        np.allclose(a, 1, atol=1e-4) for n, a in arrays.items() if n.endswith("running_var")
    )
    convolutions = [a for a in arrays.values() if a.ndim == 4]
    even = all(map(_is_even, convolutions))
    if not even and not (plain and still):
        return None
    signs = []
    if plain:
        signs.append("batch norm weights all 1 and biases all 0")
    if still:
        signs.append("running means 0 and variances 1")
    if even:
        signs.append(f"all {len(convolutions)} convolutions as even as independent draws")
        near = sum(abs(kaiming_ratio(a) - 1) < 0.03 for a in convolutions)
        if near > len(convolutions) / 2:
            signs.append(f"{near} of {len(convolutions)} convolutions with Kaiming's deviation")
    return "these look like random weights: " + ", ".join(signs)


def _is_even(weight: np.ndarray) -> bool:
    """Whether filters, and input channels, differ in their mean square no more than by chance."""
    long_enough = [axis for axis in (0, 1) if weight.shape[axis] >= 32]  # fewer say nothing
    return all(unevenness(weight, axis) < UNEVEN for axis in long_enough)


def unevenness(weight: np.ndarray, axis: int) -> float:
    """Variance of the slices' mean squares over what independent draws would have; 1 if they are.

    For n draws of x the mean of x^2 has variance (E[x^4] - E[x^2]^2) / n.
    """
    largest = float(np.abs(weight).max())
    if not largest > 0 or not math.isfinite(largest):
        return 0.0
    squares = np.square(weight / np.float32(largest))
    slices = squares.mean(axis=tuple({0, 1, 2, 3} - {axis}), dtype=np.float64)
    variance = squares.var(dtype=np.float64)
    if variance == 0:  # all of one size: no draws, and no training either
        return 0.0
    return float(slices.var(ddof=1) / (variance * weight.shape[axis] / weight.size))


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

    ours = _converted_network(target, architecture, stride_in_1x1=stride_in_1x1)
    images = torch.randn(INPUT_SHAPE, generator=torch.Generator().manual_seed(INPUT_SEED))
    # With gradients enabled (no tensor wants one) the network leaves its norms outside the
    # convolutions: the source's order of operations, so that a renaming alone differs by exactly 0,
    # and the stored difference, with it the file's bytes, is the same on every processor.
    with torch.enable_grad(), _one_thread():
        expected = source_features(
            source, ARCHITECTURES[architecture], images, stride_in_1x1=stride_in_1x1
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
        if largest == 0:
            raise InputError(
                f"{path}: every feature of {stage} is 0 for a random image: the weights are dead "
                "or damaged; use another checkpoint"
            )
        difference[stage] = float((left - right).abs().max())
        if not difference[stage] <= TOLERANCE * largest:
            raise InputError(
                f"{path}: the converted network differs from the source at {stage} by "
                f"{difference[stage]:.3g} (largest feature {largest:.3g}): nothing was written"
            )
    return difference


@contextmanager
def _one_thread() -> Iterator[None]:
    """So that the order of summation is the same everywhere."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _converted_network(
    arrays: Mapping[str, np.ndarray], architecture: str, *, stride_in_1x1: bool
) -> Any:
    """moco_det.resnet with these arrays as its weights, without copying them."""
    import torch
    from torch import Tensor
    from torch.nn import init
    from torch.overrides import TorchFunctionMode

    from moco_det.resnet.network import ResNet

    drawing = {
        *(Tensor.normal_, Tensor.uniform_, init.normal_, init.uniform_),
        *(init.kaiming_normal_, init.kaiming_uniform_),
    }

    class Undrawn(TorchFunctionMode):
        """The weights come from the file: no time goes into random ones, nor (2 s) into importing
        torch._dynamo, which drawing on the meta device does."""

        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            named = kwargs or {}
            if function in drawing:
                return args[0] if args else named["tensor"]
            return function(*args, **named)

    with torch.device("meta"), Undrawn():
        network = ResNet(ARCHITECTURES[architecture], norm="BN", stride_in_1x1=stride_in_1x1)
    # counters, which no layer uses in evaluation, are zero
    state = {name: torch.zeros((), dtype=torch.long) for name in network.state_dict()}
    state = {name: tensor for name, tensor in state.items() if name.endswith("batches_tracked")}
    state.update({name: _tensor(array) for name, array in arrays.items()})
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _tensor(array: np.ndarray) -> Any:
    import torch

    # A read-only array would make torch warn; nothing writes to these tensors.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def source_features(
    arrays: Mapping[str, np.ndarray],
    architecture: Architecture,
    images: Any,
    *,
    stride_in_1x1: bool,
) -> dict[str, Any]:
    """Each stage's features of torchvision's ResNet in evaluation, from arrays in its names.

    images: [N, 3, H, W] float32; a stage's features are [N, C, H/4, W/4] (stem, res2) to
    [N, C, H/32, W/32] (res5). Written as formulas, because importing torchvision takes longer than
    all the rest; a test holds it against torchvision's own network, bit for bit.
    """
    from torch.nn import functional as F

    def layer(x: Any, conv: str, norm: str, stride: int = 1, groups: int = 1) -> Any:
        weight = _tensor(arrays[f"{conv}.weight"])  # [C_out, C_in / groups, k, k]
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)
        mean, var, scale, shift = (
            _tensor(arrays[f"{norm}.{part}"])
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, scale, shift)

    def block(x: Any, name: str, stride: int) -> Any:
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
