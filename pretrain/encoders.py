"""Encoders: a torchvision ResNet, its parameter names untouched, and a head beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from moco_det.foundation.declared import at_least, one_of
from pretrain.small_maps import use_small_maps

Norm = Callable[[int], nn.Module]
Block = type[BasicBlock | Bottleneck]

HAS_TRITON = find_spec("triton") is not None
MOMENTUM = 0.1  # of the running statistics, as nn.BatchNorm2d's


class SplitBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over `splits` consecutive sub-batches, as `splits` processes would have it.

    Normalisation in training uses each sub-batch's own mean and variance; the running statistics
    take one step per call, towards the mean over sub-batches. In eval it is plain batch norm, and
    its state has the same names.
    """

    def __init__(self, num_features: int, *, splits: int) -> None:
        super().__init__(num_features)
        self.splits = splits

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.splits == 1:
            return super().forward(input)
        equal = len(input) % self.splits == 0 and input.dtype != torch.float64
        # torch.compile fuses what it knows
        if HAS_TRITON and input.is_cuda and equal and not torch.compiler.is_compiling():
            return self.grouped_kernel(input)
        return self.call_per_group(input)

    def call_per_group(self, input: Tensor) -> Tensor:
        """Batch norm in training, one call per group; groups may differ by one image."""
        running = self._running_statistics()
        means, variances = (vector.repeat(self.splits, 1) for vector in running)  # G x C
        # One split, not slices: its backward is one concatenation instead of a sum of padded parts.
        short, longer = divmod(len(input), self.splits)
        sizes = [short + (group < longer) for group in range(self.splits)]
        parts = [
            F.batch_norm(part, mean, var, self.weight, self.bias, True, MOMENTUM, self.eps)
            for part, mean, var in zip(input.split(sizes), means, variances, strict=True)
        ]
        for vector, groups in zip(running, (means, variances), strict=True):
            vector.copy_(groups.mean(dim=0))
        return torch.cat(parts)

    def grouped_kernel(self, input: Tensor) -> Tensor:
        """The same for equal groups on a GPU, all groups in each launch."""
        from pretrain.grouped_norm import GroupedBatchNorm  # needs triton

        vectors = self.weight, self.bias, *self._running_statistics()
        out: Tensor = GroupedBatchNorm.apply(input, *vectors, self.splits, MOMENTUM, self.eps)
        return out

    def _running_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and variance, for a step that is counted."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        assert self.running_mean is not None and self.running_var is not None
        return self.running_mean, self.running_var


class Encoder(nn.Module):
    """A ResNet trunk up to the pooled features, and a head over them.

    `trunk` has torchvision's parameter names without `fc`. `head` is "fc" (one linear layer, MoCo
    v1, Section 3.3) or "mlp" (linear, ReLU, linear; hidden width as the features', MoCo v2,
    Section 3). Input [N, 3, H, W], output [N, dim] in float32, not normalised.
    """

    def __init__(self, arch: str, *, head: str, dim: int, bn_splits: int = 1) -> None:
        super().__init__()
        norm = nn.BatchNorm2d if bn_splits == 1 else partial(SplitBatchNorm2d, splits=bn_splits)
        trunk = ARCHITECTURES[arch](norm)
        self.bn_splits = bn_splits
        self.width = trunk.fc.in_features
        self.dim = dim
        trunk.fc = nn.Identity()  # type: ignore[assignment]
        use_small_maps(trunk)
        self.trunk = trunk
        self.head = HEADS[head](self.width, dim)

    def set_bn_splits(self, splits: int) -> None:
        """Let batch norm in training see `splits` sub-batches of what comes next."""
        self.bn_splits = splits
        for module in self.modules():
            if isinstance(module, SplitBatchNorm2d):
                module.splits = splits

    def features(self, images: Tensor, *, bfloat16: bool = False) -> Tensor:
        """Pooled features [N, width] in float32; the trunk runs under autocast if asked."""
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            pooled = self.trunk(images)
        return pooled.float()

    def forward(self, images: Tensor, *, bfloat16: bool = False) -> Tensor:
        # The head is small and feeds the similarities: float32 costs nothing there.
        return self.head(self.features(images, bfloat16=bfloat16))


def _resnet(
    block: Block, blocks: list[int], norm: Norm, *, factor: float = 1, **shape: int
) -> ResNet:
    trunk = ResNet(block, blocks, norm_layer=norm, **shape)  # type: ignore[arg-type]
    return trunk if factor == 1 else _scaled(trunk, factor, norm)


def _scaled(trunk: ResNet, factor: float, norm: Norm) -> ResNet:
    """Every layer `factor` times as wide, the stem's too (MoCo paper, Table 1, R50w2x and w4x)."""
    for module in list(trunk.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(module, name, _scaled_conv(child, factor))
            elif isinstance(child, nn.BatchNorm2d):
                setattr(module, name, norm(int(child.num_features * factor)))
    trunk.fc = nn.Linear(int(trunk.fc.in_features * factor), trunk.fc.out_features)
    return trunk


def _scaled_conv(conv: nn.Conv2d, factor: float) -> nn.Conv2d:
    pixels = conv.in_channels == 3
    scaled = nn.Conv2d(
        conv.in_channels if pixels else int(conv.in_channels * factor),
        int(conv.out_channels * factor),
        kernel_size=conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        bias=False,
    )
    nn.init.kaiming_normal_(scaled.weight, mode="fan_out", nonlinearity="relu")
    return scaled


# The standard stem (7x7 stride 2, max pool) is kept for small images too: the detector that takes
# over the weights has it, and 64-96 px crops still leave 2x2-3x3 cells before pooling.
ARCHITECTURES: dict[str, Callable[[Norm], ResNet]] = {
    "resnet18": partial(_resnet, BasicBlock, [2, 2, 2, 2]),
    "resnet18_w0.5x": partial(_resnet, BasicBlock, [2, 2, 2, 2], factor=0.5),
    "resnet18_w0.25x": partial(_resnet, BasicBlock, [2, 2, 2, 2], factor=0.25),
    "resnet34": partial(_resnet, BasicBlock, [3, 4, 6, 3]),
    "resnet34_w0.5x": partial(_resnet, BasicBlock, [3, 4, 6, 3], factor=0.5),
    "resnet34_w0.25x": partial(_resnet, BasicBlock, [3, 4, 6, 3], factor=0.25),
    "resnet50": partial(_resnet, Bottleneck, [3, 4, 6, 3]),
    "resnet50_w0.5x": partial(_resnet, Bottleneck, [3, 4, 6, 3], factor=0.5),
    "resnet50_w0.25x": partial(_resnet, Bottleneck, [3, 4, 6, 3], factor=0.25),
    "resnet50_w2x": partial(_resnet, Bottleneck, [3, 4, 6, 3], factor=2),
    "resnet50_w4x": partial(_resnet, Bottleneck, [3, 4, 6, 3], factor=4),
    "resnet101": partial(_resnet, Bottleneck, [3, 4, 23, 3]),
    "resnext50_32x8d": partial(_resnet, Bottleneck, [3, 4, 6, 3], groups=32, width_per_group=8),
}


HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "fc": nn.Linear,
    "mlp": lambda width, dim: nn.Sequential(
        nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, dim)
    ),
}


@dataclass(frozen=True)
class EncoderArgs:
    """ENCODER.*: the network that is learned."""

    ARCH: str = one_of(ARCHITECTURES, "resnet50")
    HEAD: str = one_of(HEADS, "fc")  # fc (MoCo v1, InstDisc) or mlp (MoCo v2)
    DIM: int = at_least(1, 128)  # of the embedding
    # Groups of a step's batch that batch norm sees apart, over all processes together; 0 is one
    # group per process. The papers' eight GPUs are 8, on however many this runs.
    BN_SPLITS: int = at_least(0, 0)
