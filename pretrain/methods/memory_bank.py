"""The memory bank of the MoCo paper: InfoNCE over rows drawn from a bank of all images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from moco_det.foundation.declared import at_least
from pretrain.encoders import Encoder
from pretrain.losses import info_nce
from pretrain.methods.bank import Bank, BankMethod
from pretrain.methods.base import Batch, MethodOutput, contrastive_metrics


@dataclass(frozen=True)
class MemoryBankArgs:
    """MEMORY_BANK.*"""

    K: int = at_least(1, 65536)  # negatives of a query
    T: float = at_least(1e-6, 0.07)  # temperature
    # One draw of K rows serves all queries of a step; False draws K rows for each query.
    SHARED_NEGATIVES: bool = True


class MemoryBank(BankMethod):
    """The dictionary of a step is K rows drawn at random (MoCo paper, Section 3.2, Figure 2b).

    A query's positive is its own image's row, and no row gets a gradient. Where a draw hits the
    query's own image, that entry is masked out of the loss: the positive is never among its own
    negatives, and such a query has fewer than K.
    """

    def __init__(self, encoder: Encoder, bank: Bank, args: MemoryBankArgs) -> None:
        super().__init__(encoder, bank, shared_negatives=args.SHARED_NEGATIVES)
        self.args = args
        self.dictionary_size = args.K
        self.chance_loss = math.log(args.K + 1)

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Tensor:
        """The rows [n, K] that are the share's negatives."""
        return self.draw(batch.indices, self.args.K)

    def forward(self, batch: Batch, keys: Tensor | None) -> MethodOutput:
        assert keys is not None
        q = self.embed(batch.views[0])  # n x C
        positive = (q * self.bank.read(batch.indices)).sum(dim=1)  # n
        negative = self.similarity(q, keys)  # n x K
        out = keys == batch.indices[:, None]  # n x K: the query's own image
        if self.bank.skip_unseen:
            out = out | ~self.bank.seen[keys]
        masked, weight = negative.masked_fill(out, -math.inf), self.bank.weight(batch.indices)
        loss = info_nce(positive, masked, self.args.T, weight=weight)
        return MethodOutput(loss, contrastive_metrics(q, positive, negative, out), q.detach())

    def notes(self) -> list[str]:
        whose = "one draw for all queries" if self.shared_negatives else "a draw for each query"
        return [*super().notes(), f"negatives: {self.args.K} rows per step, {whose}"]

    def warnings(self, *, batch: int, images: int) -> list[str]:
        if images > self.args.K:
            return []
        return [
            f"MEMORY_BANK.K {self.args.K} is not less than the {images} images: rows are drawn "
            "more than once; lower MEMORY_BANK.K"
        ]
