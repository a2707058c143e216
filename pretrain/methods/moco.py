"""Momentum contrast: a queue of keys from a slowly following encoder."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco_det.foundation.collectives import gather, own_share
from moco_det.foundation.declared import at_least, within
from pretrain.encoders import Encoder
from pretrain.losses import info_nce
from pretrain.methods import shuffling
from pretrain.methods.base import Batch, Method, MethodOutput, contrastive_metrics

# A run here collapsed at K/batch * (1-m) = 0.32 within 200 steps; MoCo's own setting is 0.256.
DRIFT_LIMIT = 0.3
# What made a run of at most a few thousand steps learn: a fast key encoder, a queue of few batches.
SHORT_MOMENTUM, SHORT_QUEUE = 0.97, 4


@dataclass(frozen=True)
class MoCoArgs:
    """MOCO.*"""

    K: int = at_least(1, 65536)  # keys in the queue
    M: float = within(0, 1, 0.999)  # momentum of the key encoder
    T: float = at_least(1e-6, 0.07)  # temperature
    SHUFFLE: bool = True  # shuffle the keys across the groups of batch norm


class Queue(nn.Module):
    """The last `size` keys, first in first out (MoCo paper, Section 3.2).

    It starts with random unit vectors. Any number of keys may be written at once: writing wraps
    around the end, and of more than `size` keys only the last `size` stay. The state lies in
    buffers, and so in `state_dict`.
    """

    keys: Tensor
    pointer: Tensor
    written: Tensor

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        start = torch.randn(size, dim)
        self.register_buffer("keys", F.normalize(start, dim=1))  # K x C
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("written", torch.zeros((), dtype=torch.long))

    @property
    def size(self) -> int:
        """K, the number of negatives."""
        return self.keys.shape[0]

    @property
    def fill(self) -> float:
        """Share of the queue that holds real keys instead of the random start, 0..1."""
        return min(1.0, int(self.written) / self.size)

    def read(self) -> Tensor:
        """The negatives [K, C], the live buffer: back-propagate before the next `write`."""
        return self.keys

    @torch.no_grad()
    def write(self, keys: Tensor) -> None:
        """Replace the oldest keys by `keys` [N, C], in order."""
        kept = keys[-self.size :]
        # The keys that are dropped from a batch longer than the queue still move the pointer.
        # The rows are counted on the device: asking for the pointer would wait for a GPU.
        first = self.pointer + (len(keys) - len(kept))
        rows = (first + torch.arange(len(kept), device=self.keys.device)) % self.size
        self.keys.index_copy_(0, rows, kept.to(self.keys.dtype))
        self.pointer.add_(len(keys)).remainder_(self.size)
        self.written.add_(len(keys))


class MoCo(Method):
    """Momentum contrast (MoCo paper, Algorithm 1); v1 or v2 by the head and the augmentation."""

    views, passes = 2, 4  # the key encoder has no backward pass

    def __init__(self, encoder: Encoder, args: MoCoArgs) -> None:
        super().__init__(encoder)  # f_q
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)  # f_k
        self.dictionary = Queue(encoder.dim, args.K)
        self.args = args
        self.dictionary_size = args.K
        self.chance_loss = math.log(args.K + 1)

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Tensor:
        """Move the key encoder, then encode the share's keys [n, C] with it.

        Algorithm 1 moves the key encoder at the end of a step; here it is moved at the start of
        the next one, which is the same: nothing happens to either encoder in between.
        """
        self.update_key_encoder()
        return self.encode_keys(batch.views[1])

    def forward(self, batch: Batch, keys: Tensor | None) -> MethodOutput:
        assert keys is not None
        q = self.embed(batch.views[0])  # n x C
        positive = (q * keys).sum(dim=1)  # n
        negative = q @ self.dictionary.read().t()  # n x K
        loss = info_nce(positive, negative, self.args.T)
        return MethodOutput(loss, contrastive_metrics(q, positive, negative), keys)

    @torch.no_grad()
    def after_step(self, indices: Tensor, features: Tensor) -> None:
        """Enqueue the step's keys of all processes."""
        self.dictionary.write(gather(features))

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """f_k <- m f_k + (1-m) f_q (Eqn. 2); batch norm's statistics are each encoder's own."""
        keys = [p.detach() for p in self.key_encoder.parameters()]
        queries = [p.detach() for p in self.encoder.parameters()]
        torch._foreach_lerp_(keys, queries, 1.0 - self.args.M)

    @torch.no_grad()
    def encode_keys(self, view: Tensor) -> Tensor:
        """Normalised keys [n, C] in the order of `view`, under shuffling BN where it is active."""
        if not self.args.SHUFFLE or shuffling.groups(self.key_encoder.bn_splits) == 1:
            return self.embed(view, self.key_encoder)
        shuffled, order = shuffling.shuffle(view)
        keys = self.embed(shuffled, self.key_encoder)
        return own_share(shuffling.put_back(gather(keys), order))

    def notes(self) -> list[str]:
        return [shuffling.note(self.key_encoder.bn_splits, asked=self.args.SHUFFLE)]

    def warnings(self, *, batch: int, images: int) -> list[str]:
        found = []
        size, still = self.args.K, 1 - self.args.M
        # how far the key encoder moves while a key is in the queue
        moved = size / batch * still
        if moved > DRIFT_LIMIT:
            found.append(
                f"K/batch x (1-m) = {size}/{batch} x {still:.4g} = {moved:.2f} is above "
                f"{DRIFT_LIMIT}: the oldest keys come from another encoder and the run may "
                "collapse; lower MOCO.K or raise MOCO.M"
            )
        if size > images:
            found.append(
                f"MOCO.K {size} is more than the {images} images: each image has older keys of its "
                "own among its negatives; lower MOCO.K"
            )
        return found

    def ways_out(self, *, batch: int) -> list[str]:
        found, size = [], SHORT_QUEUE * batch
        if self.args.M > SHORT_MOMENTUM or size < self.args.K:
            found.append(
                f"for a short run MOCO.M {SHORT_MOMENTUM:g} and MOCO.K {size} "
                f"({SHORT_QUEUE} batches)"
            )
        if self.encoder.bn_splits * self.parts > 1:
            found.append("ENCODER.BN_SPLITS 1")
        return found

    def gauges(self) -> dict[str, float]:
        return {"queue_fill": self.dictionary.fill}
