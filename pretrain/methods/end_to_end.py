"""End-to-end: the keys are of the same mini-batch and get gradients as the queries do."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from moco_det.foundation.collectives import gather_with_grad, rank
from pretrain.encoders import Encoder
from pretrain.losses import softmax_over_all
from pretrain.methods import shuffling
from pretrain.methods.base import Batch, Method, Outcome, metrics_of_all


class EndToEnd(Method):
    """The dictionary is the batch (MoCo paper, Section 3.2 and Figure 2a).

    A query's negatives are the keys of the other images of the global batch, so that K is
    `batch` - 1. The encoder of the keys is a second one, trained by its own gradient, or with
    `shared` the one of the queries. Keys are under shuffling BN as MoCo's are (Section 3.3).
    """

    views = 2

    def __init__(
        self,
        *,
        encoder: Encoder,
        batch: int,
        temperature: float,
        shuffle: bool = True,
        shared: bool = False,
        bfloat16: bool = False,
        name: str = "end_to_end",
    ) -> None:
        super().__init__()
        self.name = name
        self.encoder = encoder  # f_q
        self.key_encoder = None if shared else copy.deepcopy(encoder)  # f_k
        self.batch = batch
        self.temperature = temperature
        self.shuffle = shuffle
        self.use_bfloat16 = bfloat16

    def forward(self, batch: Batch, keys: Tensor | None) -> Outcome:
        view_q, view_k = batch.views
        q = F.normalize(self.encoder(view_q, bfloat16=self.use_bfloat16), dim=1)  # n x C
        k = self.encode_keys(view_k)  # N x C
        similarity = q @ k.t()  # n x N
        own = rank() * len(q) + torch.arange(len(q), device=q.device)
        loss = softmax_over_all(similarity, own, self.temperature)
        return Outcome(loss, metrics_of_all(q, similarity, own), q.detach())

    def encode_keys(self, view: Tensor) -> Tensor:
        """The normalised keys [N, C] of all processes, with their gradient, as the images lie."""
        encoder = self.encoder if self.key_encoder is None else self.key_encoder
        if not self.shuffle or shuffling.groups(self.encoder.bn_splits) == 1:
            return gather_with_grad(F.normalize(encoder(view, bfloat16=self.use_bfloat16), dim=1))
        shuffled, order = shuffling.shuffle(view)
        keys = F.normalize(encoder(shuffled, bfloat16=self.use_bfloat16), dim=1)
        return shuffling.put_back(gather_with_grad(keys), order)

    @property
    def chance_loss(self) -> float:
        return math.log(self.batch)

    @property
    def dictionary_size(self) -> int:
        return self.batch - 1

    def notes(self) -> list[str]:
        encoders = "one encoder" if self.key_encoder is None else "two encoders"
        return [
            f"end-to-end: {encoders}, {self.dictionary_size} negatives of the same batch",
            shuffling.note(self.encoder.bn_splits, asked=self.shuffle),
        ]
