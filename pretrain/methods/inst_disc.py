"""Instance discrimination (Wu et al. 2018): every image is its own class.

Three losses: noise-contrastive estimation, which the paper trains ImageNet with; the full softmax
over all rows of the bank; and the parametric softmax, its baseline. The paper replaces the bank's
rows (momentum 0) and holds the features by the proximal term; the released code has no such term
and moves the rows by half (momentum 0.5).
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco_det.foundation.collectives import gather
from pretrain.dictionaries import Bank
from pretrain.encoders import Encoder
from pretrain.losses import (
    log_z_estimate,
    nce,
    nce_chance,
    proximal,
    softmax_over_all,
)
from pretrain.methods.bank import BankMethod, Draw
from pretrain.methods.base import (
    Batch,
    Method,
    Metrics,
    Outcome,
    contrastive_metrics,
    feature_std,
    metrics_of_all,
)


class _Proximal(BankMethod):
    """Adds the proximal term, weight times the squared distance to the image's own row.

    Wu et al. 2018, Section 3.3, Eq. 9-10.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        bank: Bank,
        temperature: float,
        proximal_weight: float = 0.0,
        bfloat16: bool = False,
        name: str = "inst_disc",
    ) -> None:
        super().__init__(
            encoder=encoder, bank=bank, temperature=temperature, bfloat16=bfloat16, name=name
        )
        self.proximal_weight = proximal_weight

    def with_proximal(
        self, loss: Tensor, q: Tensor, batch: Batch, before: Tensor, metrics: Metrics
    ) -> Outcome:
        """The outcome for features q [n, C] whose rows are `before` [n, C]."""
        if self.proximal_weight > 0:
            distance = proximal(q, before, weight=self.bank.weight(batch.indices))
            loss = loss + self.proximal_weight * distance
            metrics = {**metrics, "proximal": distance.detach()}
        return Outcome(loss, metrics, q.detach())

    @property
    def chance_proximal(self) -> float:
        """The term where features and rows have nothing to do with each other: 2 lambda."""
        return 2.0 * self.proximal_weight

    def notes(self) -> list[str]:
        weight = self.proximal_weight
        return [
            *super().notes(),
            f"proximal term: lambda {weight:g}" if weight else "proximal term: off",
        ]


class InstDiscNCE(_Proximal):
    """Noise-contrastive estimation with m noise samples (Wu et al. 2018, Section 3.2).

    Noise is uniform over all images, the query's own among them: P_n = 1/n is what the loss is
    derived for. Z is `z`, or where that is 0 a Monte-Carlo estimate on the first batch (Eq. 8).
    With `z_momentum` below 1 each batch's estimate moves it, from the next batch on.
    """

    log_z: Tensor

    def __init__(
        self,
        *,
        encoder: Encoder,
        bank: Bank,
        samples: int,
        temperature: float,
        z: float = 0.0,
        z_momentum: float = 1.0,
        shared_negatives: bool = False,
        proximal_weight: float = 0.0,
        bfloat16: bool = False,
        name: str = "inst_disc",
    ) -> None:
        super().__init__(
            encoder=encoder,
            bank=bank,
            temperature=temperature,
            proximal_weight=proximal_weight,
            bfloat16=bfloat16,
            name=name,
        )
        self.draw = Draw(bank, count=samples, shared=shared_negatives)
        self.z_momentum = z_momentum
        # nan until it is estimated
        self.register_buffer("log_z", torch.tensor(math.log(z) if z > 0 else math.nan))
        self._z_is_known = z > 0
        self._estimates: list[Tensor] = []

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Tensor:
        """The rows [n, m] that are the share's noise; before the first step, Z as well."""
        rows = self.draw.rows(batch.indices)
        self._estimates = []
        if not self._z_is_known:  # asks the device once, not at every step
            if self.log_z.isnan() and self._rows_can_tell(batch):
                self.log_z.copy_(self._first_log_z(batch, rows))
            self._z_is_known = not bool(self.log_z.isnan())
        return rows

    def forward(self, batch: Batch, keys: Tensor | None) -> Outcome:
        assert keys is not None
        q = self.embed(batch)  # n x C
        before = self.bank.read(batch.indices)  # n x C
        positive = (q * before).sum(dim=1)  # n
        negative = self.draw.similarity(q, keys)  # n x m
        if self.z_momentum < 1 and self._z_is_known:
            self._estimates.append(self._log_z_of(negative.detach()))
        loss = nce(
            positive,
            negative,
            temperature=self.temperature,
            log_z=self.log_z if self._z_is_known else torch.zeros_like(self.log_z),
            images=self.bank.images,
            weight=self._weight(batch),
        )
        metrics = contrastive_metrics(q, positive, negative, keys == batch.indices[:, None])
        return self.with_proximal(loss, q, batch, before, metrics)

    def _weight(self, batch: Batch) -> Tensor | None:
        weight = self.bank.weight(batch.indices)
        return weight if weight is None or self._z_is_known else torch.zeros_like(weight)

    def _rows_can_tell(self, batch: Batch) -> bool:
        """Whether Z can be estimated: where the random start is skipped, once most rows are not."""
        weight = self.bank.weight(batch.indices)
        return weight is None or float(gather(weight).mean()) > 0.5

    @torch.no_grad()
    def after_step(self, indices: Tensor, features: Tensor) -> None:
        """Write the bank, and move Z where it is not a constant."""
        super().after_step(indices, features)
        if self._estimates:
            found = _log_mean_exp(gather(torch.stack(self._estimates)))
            old = math.log(self.z_momentum) if self.z_momentum else -math.inf
            new = math.log1p(-self.z_momentum)
            self.log_z.copy_(torch.logaddexp(self.log_z + old, found + new))
            self._estimates = []

    @property
    def settled(self) -> bool:
        return self._z_is_known

    @property
    def z(self) -> float:
        """Z; nan until it is estimated."""
        return float(self.log_z.double().exp())

    def _log_z_of(self, negative: Tensor) -> Tensor:
        return log_z_estimate(negative, temperature=self.temperature, images=self.bank.images)

    def _first_log_z(self, batch: Batch, rows: Tensor) -> Tensor:
        """ln Z over the whole global batch; batch norm's running statistics stay as they are."""
        kept = [buffer.clone() for buffer in self.encoder.buffers()]
        cuts = [part * len(rows) // self.parts for part in range(self.parts + 1)]
        q = torch.cat([self.embed(batch.part(*cut)) for cut in itertools.pairwise(cuts)])  # n x C
        negative = self.draw.similarity(q, rows)
        for buffer, before in zip(self.encoder.buffers(), kept, strict=True):
            buffer.copy_(before)
        return _log_mean_exp(gather(self._log_z_of(negative)[None]))

    @property
    def chance_loss(self) -> float:
        return nce_chance(self.draw.count) + self.chance_proximal

    @property
    def dictionary_size(self) -> int:
        return self.draw.count

    def notes(self) -> list[str]:
        z = "estimated on the first batch" if math.isnan(self.z) else f"{self.z:.6g}"
        moves = "constant" if self.z_momentum == 1 else f"momentum {self.z_momentum:g}"
        whose = "one draw for all queries" if self.draw.shared else "a draw for each query"
        return [
            *super().notes(),
            f"NCE: {self.draw.count} noise samples, {whose}; Z {z}, {moves}",
        ]

    def gauges(self) -> dict[str, float]:
        return {**super().gauges(), "z": self.z}


class InstDiscSoftmax(_Proximal):
    """The full non-parametric softmax over all images (Wu et al. 2018, Section 3.1, Eq. 2-3)."""

    def forward(self, batch: Batch, keys: Tensor | None) -> Outcome:
        q = self.embed(batch)  # n x C
        similarity = q @ self.bank.read_all().t()  # n x images
        metrics = metrics_of_all(q, similarity.detach(), batch.indices)
        if self.bank.skip_unseen:
            out = (~self.bank.seen).expand_as(similarity)
            out = out.scatter(1, batch.indices[:, None], False)
            similarity = similarity.masked_fill(out, -math.inf)
        loss = softmax_over_all(
            similarity, batch.indices, self.temperature, weight=self.bank.weight(batch.indices)
        )
        return self.with_proximal(loss, q, batch, self.bank.read(batch.indices), metrics)

    @property
    def chance_loss(self) -> float:
        return math.log(self.bank.images) + self.chance_proximal

    @property
    def dictionary_size(self) -> int:
        return self.bank.images - 1


class InstDiscParametric(Method):
    """The parametric softmax (Wu et al. 2018, Section 3.1, Eq. 1): a weight vector for each image.

    The weights are trained by gradient; features are not normalised and there is no temperature.
    """

    views = 1

    def __init__(
        self,
        *,
        encoder: Encoder,
        images: int,
        dim: int,
        bfloat16: bool = False,
        name: str = "inst_disc",
    ) -> None:
        super().__init__()
        self.name = name
        self.encoder = encoder
        self.classifier = nn.Linear(dim, images, bias=False)
        self.use_bfloat16 = bfloat16

    def forward(self, batch: Batch, keys: Tensor | None) -> Outcome:
        v = self.encoder(batch.views[0], bfloat16=self.use_bfloat16)  # n x C
        scores = self.classifier(v)  # n x images
        q = F.normalize(v.detach(), dim=1)
        right = scores.detach().argmax(dim=1) == batch.indices
        metrics = {"accuracy": 100.0 * right.float().mean(), "feature_std": feature_std(q)}
        return Outcome(F.cross_entropy(scores, batch.indices), metrics, q)

    @property
    def chance_loss(self) -> float:
        return math.log(self.classifier.out_features)

    def notes(self) -> list[str]:
        return [
            f"parametric softmax: one trained weight vector for each of "
            f"{self.classifier.out_features} images"
        ]


def _log_mean_exp(values: Tensor) -> Tensor:
    return values.logsumexp(dim=0) - math.log(len(values))
