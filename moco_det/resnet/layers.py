"""Convolution with its norm inside, and the norms a detector may ask for.

The norm is a child of the convolution, so that parameters are called
``res2.0.conv1.weight`` and ``res2.0.conv1.norm.weight`` as detectron2 names them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor, nn
from torch.nn import functional as F


class FrozenBatchNorm2d(nn.Module):
    """BatchNorm2d whose statistics and affine parameters are constants (buffers, no gradient)."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        # var + eps is exactly 1, so that an unloaded layer is the identity
        self.register_buffer("running_var", torch.ones(num_features) - eps)

    def constants(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of each channel."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.constants()
        return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the batches of all processes, on GPUs (torch's own) and on CPUs.

    The statistics are those of all pixels of all processes together, each pixel counting alike.
    In a single process it is plain BatchNorm2d.
    """

    # nn.SyncBatchNorm itself is no base: DistributedDataParallel refuses it on CPUs. These two
    # are what its forward asks of a layer beyond BatchNorm2d.
    process_group = None
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, x: Tensor) -> Tensor:
        alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
        if alone or not self.training:
            return super().forward(x)
        if x.is_cuda:
            return nn.SyncBatchNorm.forward(self, x)  # type: ignore[arg-type]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        channels = wide.shape[1]
        count = wide.new_full((1,), wide.numel() / channels)
        sums = torch.cat([wide.sum(dim=(0, 2, 3)), wide.square().sum(dim=(0, 2, 3)), count])
        sums = torch.distributed.nn.functional.all_reduce(sums)
        total = sums[-1]
        mean, second = (sums[:-1] / total).split(channels)
        # rounding may leave the difference of two large numbers below zero
        variance = (second - mean.square()).clamp(min=0)
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            unbiased = variance * (total / (total - 1))
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (wide * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


NORMS: dict[str, Callable[[int], nn.Module | None]] = {
    "": lambda channels: None,
    "BN": nn.BatchNorm2d,
    "SyncBN": SyncBatchNorm2d,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
}


def make_norm(name: str, channels: int) -> nn.Module | None:
    """A norm layer by detectron2's name; ``""`` is none."""
    return NORMS[name](channels)


class Conv2d(nn.Conv2d):
    """Convolution, then its norm if any, then ReLU if asked for."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        norm: str = "",
        bias: bool | None = None,
        relu: bool = False,
    ) -> None:
        bias = norm == "" if bias is None else bias
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        super().__init__(*sizes, bias=bias)
        layer = make_norm(norm, out_channels)
        if layer is not None:
            self.norm = layer
        self.has_norm = layer is not None
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        constants = folding(self.norm) if self.has_norm and self.bias is None else None
        if constants is None:
            return self.finish(super().forward(x))
        scale, shift = constants
        x = self._conv_forward(x, self.weight * scale[:, None, None, None], shift)
        return F.relu_(x) if self.relu else x

    def finish(self, x: Tensor) -> Tensor:
        """What follows the convolution: norm and ReLU."""
        if self.has_norm:
            x = self.norm(x)
        return F.relu_(x) if self.relu else x


def folding(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Scale and shift of a norm that is a constant affine map, else None.

    Such a norm goes into the convolution before it: one pass over the feature map less. So does
    FrozenBN always, and BN where its running statistics are used and nothing is learned.
    """
    if isinstance(norm, FrozenBatchNorm2d):
        return norm.constants()
    if not isinstance(norm, nn.BatchNorm2d) or norm.training or torch.is_grad_enabled():
        return None
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return scale, norm.bias - mean * scale


def msra_fill(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """He et al. 2015 normal initialisation over the fan out, zero bias."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def xavier_fill(layer: nn.Conv2d | nn.Linear) -> None:
    """Uniform initialisation over the fan in, bound sqrt(3 / fan_in), zero bias.

    This is what Caffe2 called Xavier and what detectron2's FPN and fc layers start from.
    """
    nn.init.kaiming_uniform_(layer.weight, a=1.0)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def normal_fill(layer: nn.Conv2d | nn.Linear, std: float) -> None:
    """Normal initialisation around zero, zero bias: what the predictors start from."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
