"""The memory bank, and what the methods that have one share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco_det.foundation.collectives import gather, own_share, world_size
from moco_det.foundation.declared import one_of, within
from pretrain.encoders import Encoder
from pretrain.methods.base import Method

# With up to so many times more rows than draws, all similarities at once and the drawn ones picked
# out are faster than copying the drawn rows for each query, and take less memory (128 queries,
# 4096 draws, 128 dimensions, one core: 11 ms instead of 350 over 3000 rows, 134 instead of 525 over
# 65536).
DENSE = 16
DTYPES = {"float32": torch.float32, "float16": torch.float16}  # of a bank's rows


@dataclass(frozen=True)
class BankArgs:
    """BANK.*: the bank of one embedding per image, of memory_bank and inst_disc."""

    # A row becomes MOMENTUM * row + (1 - MOMENTUM) * embedding, normalised; 0 replaces it.
    MOMENTUM: float = within(0, 1, 0.5)
    DTYPE: str = one_of(DTYPES, "float32")
    # Leave rows that still hold the random start out of the loss: the first epoch then only fills
    # the bank. For runs of few epochs; the papers do not.
    SKIP_UNSEEN: bool = False


class Bank(nn.Module):
    """One feature for each image of the set (Wu et al. 2018, Section 3.1).

    It starts with random unit vectors. Rows are kept in DTYPE and handed out in float32. With
    SKIP_UNSEEN the random start enters neither the loss nor, by the momentum, later rows, so
    that the first epoch only fills the bank: else queries flee what the bank holds of them for an
    epoch, from which short runs do not recover. The papers do not skip.
    """

    rows: Tensor
    seen: Tensor

    def __init__(self, images: int, dim: int, args: BankArgs) -> None:
        super().__init__()
        self.momentum = args.MOMENTUM
        self.skip_unseen = args.SKIP_UNSEEN
        start = F.normalize(torch.randn(images, dim), dim=1)
        self.register_buffer("rows", start.to(DTYPES[args.DTYPE]))  # n x C
        self.register_buffer("seen", torch.zeros(images, dtype=torch.bool))

    @property
    def images(self) -> int:
        """n, the number of rows."""
        return self.rows.shape[0]

    @property
    def fill(self) -> float:
        """Share of the rows that hold a feature instead of the random start, 0..1."""
        return float(self.seen.float().mean())

    def read(self, indices: Tensor) -> Tensor:
        """The rows `indices` [...] as [..., C] in float32."""
        return self.rows[indices].float()

    def similarity(self, q: Tensor, indices: Tensor) -> Tensor:
        """Similarity [N, K] of each query of q [N, C] to its own rows `indices` [N, K]."""
        if self.dense(indices.shape[1]):
            return (q @ self.rows.float().t()).gather(1, indices)
        return torch.einsum("nc,nkc->nk", q, self.read(indices))

    def weight(self, indices: Tensor) -> Tensor | None:
        """What a query of each image [N] counts: 0 for a row of the random start to be skipped."""
        return self.seen[indices].float() if self.skip_unseen else None

    def dense(self, drawn: int) -> bool:
        """Whether `similarity` to so many rows per query is made from that to all rows."""
        return self.images <= DENSE * drawn

    @torch.no_grad()
    def write(self, features: Tensor, indices: Tensor) -> None:
        """Move rows `indices` [N] towards `features` [N, C]: m * row + (1-m) * feature, normalised.

        With momentum 0 the row is replaced, as in Wu et al. 2018, Section 3.1; their released
        code has 0.5. Of an image that is there more than once the last feature counts.
        """
        # Copies of an image all write the same value: a GPU may write them in any order.
        latest = features[last_of_each(indices)].float()
        moved = self.read(indices).lerp_(latest, 1.0 - self.momentum)
        if self.skip_unseen:  # of the random start nothing stays
            moved = torch.where(self.seen[indices, None], moved, latest)
        self.rows.index_copy_(0, indices, F.normalize(moved, dim=1).to(self.rows.dtype))
        self.seen.index_fill_(0, indices, True)


def last_of_each(indices: Tensor) -> Tensor:
    """For each entry of `indices` [N], the position [N] of the last entry that equals it."""
    same = indices[:, None] == indices[None, :]  # N x N
    return (same * torch.arange(len(indices), device=indices.device)).amax(dim=1)


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
