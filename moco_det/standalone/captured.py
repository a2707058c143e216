"""Backbone and RPN head as CUDA graphs, one for each frequent size of a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moco_det.standalone.rpn import Outputs, RPNHead

# A size is captured when it comes for the third time: what kernels choose once is chosen by then.
FREQUENT = 3
# Each graph keeps the maps that it leaves and their gradients: 109 MB of an FPN in bfloat16 for two
# images of 800 px, 2 x 2 x 53,294 cells of 256 channels of 2 bytes.
MOST = 48


class Trunk(nn.Module):
    """The part of a detector whose work depends on the batch's size alone."""

    def __init__(self, backbone: nn.Module, head: RPNHead, in_features: Sequence[str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.in_features = tuple(in_features)
        self.names: list[str] = []

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Features, then the logits of all maps, then their deltas."""
        features = self.backbone(batch)
        self.names = list(features)
        logits, deltas = self.head([features[name] for name in self.in_features])
        return (*features.values(), *logits, *deltas)


class CapturedTrunk:
    """A trunk in training, launched kernel by kernel or, for sizes seen before, as one graph.

    What a graph leaves is overwritten by the next call.
    """

    def __init__(self, backbone: nn.Module, head: RPNHead, in_features: Sequence[str]) -> None:
        self.parts = backbone, head, in_features
        self.plain = Trunk(*self.parts)
        self.seen: Counter[torch.Size] = Counter()
        self.trunks: dict[torch.Size, Trunk] = {}
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, batch: Tensor) -> tuple[dict[str, Tensor], Outputs]:
        self.seen[batch.shape] += 1
        frequent = self.seen[batch.shape] >= FREQUENT and len(self.trunks) < MOST
        if frequent and batch.shape not in self.trunks:
            self.trunks[batch.shape] = self.capture(batch)
        return named(self.trunks.get(batch.shape, self.plain), batch)

    def launched(self, batch: Tensor) -> tuple[dict[str, Tensor], Outputs]:
        """The same kernel by kernel."""
        return named(self.plain, batch)

    def capture(self, batch: Tensor) -> Trunk:
        # capturing computes some batches, which must not count in running statistics
        trunk = Trunk(*self.parts)
        before = [buffer.clone() for buffer in trunk.buffers()]
        kind = torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", kind, torch.is_autocast_enabled("cuda"), cache_enabled=False):
            torch.cuda.make_graphed_callables(
                trunk, (batch.clone(),), allow_unused_input=True, pool=self.pool
            )
        for buffer, value in zip(trunk.buffers(), before, strict=True):
            buffer.copy_(value)
        return trunk


def named(trunk: Trunk, batch: Tensor) -> tuple[dict[str, Tensor], Outputs]:
    """What a trunk gives, as features by name and the outputs of the RPN head."""
    found = trunk(batch)
    features = dict(zip(trunk.names, found, strict=False))
    rest = found[len(features) :]
    levels = len(rest) // 2
    return features, (rest[:levels], rest[levels:])
