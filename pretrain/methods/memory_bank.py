"""The memory bank of the MoCo paper: InfoNCE over rows drawn from a bank of all images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pretrain.dictionaries import Bank
from pretrain.encoders import Encoder
from pretrain.losses import info_nce
from pretrain.methods.bank import BankMethod, Draw
from pretrain.methods.base import Batch, Outcome, contrastive_metrics


class MemoryBank(BankMethod):
    """The dictionary of a step is K rows drawn at random (MoCo paper, Section 3.2, Figure 2b).

    A query's positive is its own image's row, and no row gets a gradient. Where a draw hits the
    query's own image, that entry is masked out of the loss: the positive is never among its own
    negatives, and such a query has fewer than K.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        bank: Bank,
        negatives: int,
        temperature: float,
        shared_negatives: bool = True,
        bfloat16: bool = False,
        name: str = "memory_bank",
    ) -> None:
        super().__init__(
            encoder=encoder, bank=bank, temperature=temperature, bfloat16=bfloat16, name=name
        )
        self.draw = Draw(bank, count=negatives, shared=shared_negatives)

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Tensor:
        """The rows [n, K] that are the share's negatives."""
        return self.draw.rows(batch.indices)

    def forward(self, batch: Batch, keys: Tensor | None) -> Outcome:
        assert keys is not None
        q = self.embed(batch)  # n x C
        positive = (q * self.bank.read(batch.indices)).sum(dim=1)  # n
        negative = self.draw.similarity(q, keys)  # n x K
        out = keys == batch.indices[:, None]  # n x K: the query's own image
        unseen = self.bank.left_out(keys)
        if unseen is not None:
            out = out | unseen
        loss = info_nce(
            positive,
            negative.masked_fill(out, -math.inf),
            self.temperature,
            weight=self.bank.weight(batch.indices),
        )
        return Outcome(loss, contrastive_metrics(q, positive, negative, out), q.detach())

    @property
    def chance_loss(self) -> float:
        return math.log(self.draw.count + 1)

    @property
    def dictionary_size(self) -> int:
        return self.draw.count

    def notes(self) -> list[str]:
        whose = "one draw for all queries" if self.draw.shared else "a draw for each query"
        return [*super().notes(), f"negatives: {self.draw.count} rows a step, {whose}"]

    def warnings(self, *, batch: int, images: int) -> list[str]:
        if self.draw.count < images:
            return []
        return [
            f"MEMORY_BANK.K {self.draw.count} is not less than the {images} images: rows are drawn "
            "more than once; lower MEMORY_BANK.K"
        ]
