"""What the methods with a memory bank share."""

from __future__ import annotations

import torch
from torch import Tensor

from moco_det.foundation.collectives import gather, own_share, world_size
from pretrain.dictionaries import Bank
from pretrain.encoders import Encoder
from pretrain.methods.base import Method


class BankMethod(Method):
    """One view, one encoder, and a row for each image that is moved to its feature after a step.

    No shuffling BN: positives come from other mini-batches (MoCo paper, Section 3.3).
    """

    def __init__(self, encoder: Encoder, bank: Bank, *, shared_negatives: bool) -> None:
        super().__init__(encoder)
        self.bank = bank
        self.shared_negatives = shared_negatives

    def draw(self, indices: Tensor, count: int) -> Tensor:
        """Uniform row numbers [n, count], with replacement, for the share's queries.

        With shared negatives one draw serves all queries of a step, else each has its own. They
        are the same on any number of processes, drawn on the device of `indices`.
        """
        n, device = len(indices), indices.device
        if self.shared_negatives:
            return torch.randint(self.bank.images, (1, count), device=device).expand(n, -1)
        # Drawn for the whole global batch: processes whose generators agree get different rows.
        drawn = torch.randint(self.bank.images, (n * world_size(), count), device=device)
        return own_share(drawn)

    def similarity(self, q: Tensor, rows: Tensor) -> Tensor:
        """Similarity [n, K] of queries [n, C] to the rows [n, K] that were drawn for them."""
        if self.shared_negatives:
            return q @ self.bank.read(rows[0]).t()
        return self.bank.similarity(q, rows)

    @torch.no_grad()
    def after_step(self, indices: Tensor, features: Tensor) -> None:
        """Write the step's features of all processes."""
        self.bank.write(gather(features), gather(indices))

    def notes(self) -> list[str]:
        bank, groups = self.bank, self.encoder.bn_splits * self.parts * world_size()
        kept = f"keep {bank.momentum:g} of themselves" if bank.momentum else "are replaced"
        dtype = str(bank.rows.dtype).removeprefix("torch.")
        return [
            f"bank: {bank.images} rows of {bank.rows.shape[1]} in {dtype}, "
            f"{bank.rows.nbytes / 2**20:.1f} MiB in each process; rows {kept}",
            *(["bank: the first epoch only fills it"] if bank.skip_unseen else []),
            f"batch norm over {groups} group{'s' if groups > 1 else ''}; shuffling BN: not needed, "
            "positives come from earlier steps",
        ]

    def gauges(self) -> dict[str, float]:
        return {"bank_fill": self.bank.fill}
