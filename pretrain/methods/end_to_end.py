"""End-to-end: the keys are of the same mini-batch and get gradients as the queries do."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from moco_det.foundation.collectives import gather_with_grad, rank
from moco_det.foundation.declared import at_least
from pretrain.encoders import Encoder
from pretrain.losses import softmax_over_all
from pretrain.methods import shuffling
from pretrain.methods.base import Batch, Method, MethodOutput, metrics_of_all


@dataclass(frozen=True)
class EndToEndArgs:
    """END_TO_END.*"""

    T: float = at_least(1e-6, 0.07)  # temperature
    SHUFFLE: bool = True  # shuffle the keys across the groups of batch norm
    SHARED: bool = False  # one encoder for queries and keys instead of two


class EndToEnd(Method):
    """The dictionary is the batch (MoCo paper, Section 3.2 and Figure 2a).

    A query's negatives are the keys of the other images of the global batch of N, so that K is
    N - 1. The encoder of the keys is a second one, trained by its own gradient, or with SHARED the
    one of the queries. Keys are under shuffling BN as MoCo's are (Section 3.3).
    """

    views, passes = 2, 6

    def __init__(self, encoder: Encoder, args: EndToEndArgs, *, batch: int) -> None:
        super().__init__(encoder)  # f_q
        self.key_encoder = None if args.SHARED else copy.deepcopy(encoder)  # f_k
        self.args = args
        self.dictionary_size = batch - 1
        self.chance_loss = math.log(batch)

    def forward(self, batch: Batch, keys: Tensor | None) -> MethodOutput:
        view_q, view_k = batch.views
        q = self.embed(view_q)  # n x C
        k = self.encode_keys(view_k)  # N x C
        similarity = q @ k.t()  # n x N
        own = rank() * len(q) + torch.arange(len(q), device=q.device)
        loss = softmax_over_all(similarity, own, self.args.T)
        return MethodOutput(loss, metrics_of_all(q, similarity, own), q.detach())

    def encode_keys(self, view: Tensor) -> Tensor:
        """The normalised keys [N, C] of all processes, with their gradient, as the images lie."""
        if not self.args.SHUFFLE or shuffling.groups(self.encoder.bn_splits) == 1:
            return gather_with_grad(self.embed(view, self.key_encoder))
        shuffled, order = shuffling.shuffle(view)
        keys = gather_with_grad(self.embed(shuffled, self.key_encoder))
        return shuffling.put_back(keys, order)

    def notes(self) -> list[str]:
        encoders = "one encoder" if self.key_encoder is None else "two encoders"
        return [
            f"end-to-end: {encoders}, {self.dictionary_size} negatives of the same batch",
            shuffling.note(self.encoder.bn_splits, asked=self.args.SHUFFLE),
        ]
