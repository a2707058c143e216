"""Momentum contrast: a queue of keys from a slowly following encoder."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from moco_det.foundation.collectives import gather, own_share
from pretrain.dictionaries import Queue
from pretrain.encoders import Encoder
from pretrain.losses import info_nce, similarities
from pretrain.methods import shuffling
from pretrain.methods.base import Batch, Method, Outcome, contrastive_metrics
from pretrain.watch import queue_warnings


class MoCo(Method):
    """Momentum contrast (MoCo paper, Algorithm 1); v1 or v2 by the head and the augmentation."""

    views = 2

    def __init__(
        self,
        *,
        encoder: Encoder,
        dictionary: Queue,
        momentum: float,
        temperature: float,
        shuffle: bool = True,
        bfloat16: bool = False,
        name: str = "moco",
    ) -> None:
        super().__init__()
        self.name = name
        self.encoder = encoder  # f_q
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)  # f_k
        self.dictionary = dictionary
        self.momentum = momentum
        self.temperature = temperature
        self.shuffle = shuffle
        self.use_bfloat16 = bfloat16

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Tensor:
        """Move the key encoder, then encode the share's keys [n, C] with it.

        Algorithm 1 moves the key encoder at the end of a step; here it is moved at the start of
        the next one, which is the same: nothing happens to either encoder in between.
        """
        self.update_key_encoder()
        return self.encode_keys(batch.views[1])

    def forward(self, batch: Batch, keys: Tensor | None) -> Outcome:
        assert keys is not None
        q = F.normalize(self.encoder(batch.views[0], bfloat16=self.use_bfloat16), dim=1)  # n x C
        positive, negative = similarities(q, keys, self.dictionary.read())
        loss = info_nce(positive, negative, self.temperature)
        return Outcome(loss, contrastive_metrics(q, positive, negative), keys)

    @torch.no_grad()
    def after_step(self, indices: Tensor, features: Tensor) -> None:
        """Enqueue the step's keys of all processes."""
        self.dictionary.write(gather(features))

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """f_k <- m f_k + (1-m) f_q (Eqn. 2); batch norm's statistics are each encoder's own."""
        keys = [p.detach() for p in self.key_encoder.parameters()]
        queries = [p.detach() for p in self.encoder.parameters()]
        torch._foreach_lerp_(keys, queries, 1.0 - self.momentum)

    @torch.no_grad()
    def encode_keys(self, view: Tensor) -> Tensor:
        """Normalised keys [n, C] in the order of `view`, under shuffling BN where it is active."""
        if not self.shuffle or shuffling.groups(self.key_encoder.bn_splits) == 1:
            return F.normalize(self.key_encoder(view, bfloat16=self.use_bfloat16), dim=1)
        shuffled, order = shuffling.shuffle(view)
        keys = F.normalize(self.key_encoder(shuffled, bfloat16=self.use_bfloat16), dim=1)
        return own_share(shuffling.put_back(gather(keys), order))

    @property
    def chance_loss(self) -> float:
        return math.log(self.dictionary.size + 1)

    @property
    def dictionary_size(self) -> int:
        return self.dictionary.size

    def notes(self) -> list[str]:
        return [shuffling.note(self.key_encoder.bn_splits, asked=self.shuffle)]

    def warnings(self, *, batch: int, images: int) -> list[str]:
        return queue_warnings(self.dictionary.size, batch, self.momentum, images)

    def gauges(self) -> dict[str, float]:
        return {"queue_fill": self.dictionary.fill}
