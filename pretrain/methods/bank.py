"""What the methods with a memory bank share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moco_det.foundation.collectives import gather, own_share, world_size
from pretrain.dictionaries import Bank
from pretrain.encoders import Encoder
from pretrain.methods.base import Batch, Method


class BankMethod(Method):
    """One view, one encoder, and a row for each image that is moved to its feature after a step.

    No shuffling BN: positives come from other mini-batches (MoCo paper, Section 3.3).
    """

    views = 1

    def __init__(
        self, *, encoder: Encoder, bank: Bank, temperature: float, bfloat16: bool, name: str
    ) -> None:
        super().__init__()
        self.name = name
        self.encoder = encoder
        self.bank = bank
        self.temperature = temperature
        self.use_bfloat16 = bfloat16

    def embed(self, batch: Batch) -> Tensor:
        """The normalised features [n, C] of the batch."""
        return F.normalize(self.encoder(batch.views[0], bfloat16=self.use_bfloat16), dim=1)

    @torch.no_grad()
    def after_step(self, indices: Tensor, features: Tensor) -> None:
        """Write the step's features of all processes."""
        self.bank.write(gather(features), gather(indices))

    def notes(self) -> list[str]:
        bank, groups = self.bank, self.encoder.bn_splits * self.parts * world_size()
        kept = (
            f"rows keep {bank.momentum:g} of themselves" if bank.momentum else "rows are replaced"
        )
        dtype = str(bank.rows.dtype).removeprefix("torch.")
        return [
            f"bank: {bank.images} rows of {bank.rows.shape[1]} in {dtype}, "
            f"{bank.mebibytes:.1f} MiB in each process; {kept}",
            *(["bank: the first epoch only fills it"] if bank.skip_unseen else []),
            f"batch norm over {groups} group{'s' if groups > 1 else ''}; shuffling BN: not needed, "
            "positives come from earlier steps",
        ]

    def gauges(self) -> dict[str, float]:
        return {"bank_fill": self.bank.fill}


class Draw:
    """Uniform draws of bank rows, with replacement, the same on any number of processes.

    `shared`: one draw of `count` rows serves all queries of a step; else each query has its own.
    """

    def __init__(self, bank: Bank, *, count: int, shared: bool) -> None:
        self.bank = bank
        self.count = count
        self.shared = shared

    def rows(self, indices: Tensor) -> Tensor:
        """Row numbers [n, count] for the share's queries, drawn on the device of `indices`."""
        n, device = len(indices), indices.device
        if self.shared:
            drawn = torch.randint(self.bank.images, (1, self.count), device=device)
            return drawn.expand(n, -1)
        # Drawn for the whole global batch: processes whose generators agree get different rows.
        queries = n * world_size()
        return own_share(torch.randint(self.bank.images, (queries, self.count), device=device))

    def similarity(self, q: Tensor, rows: Tensor) -> Tensor:
        """Similarity [n, count] of queries [n, C] to the rows that `rows` drew for them."""
        if self.shared:
            return q @ self.bank.read(rows[0]).t()
        return self.bank.similarity(q, rows)
