"""Instance discrimination (Wu et al. 2018): every image is its own class.

Three losses: noise-contrastive estimation, which the paper trains ImageNet with; the full softmax
over all rows of the bank; and the parametric softmax, its baseline. The paper replaces the bank's
rows (momentum 0) and holds the features by the proximal term; the released code has no such term
and moves the rows by half (momentum 0.5).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco_det.foundation.collectives import gather
from moco_det.foundation.declared import at_least, one_of, within
from moco_det.foundation.errors import InputError
from pretrain.encoders import Encoder
from pretrain.losses import log_z_estimate, nce, nce_chance, proximal, softmax_over_all
from pretrain.methods.bank import Bank, BankMethod
from pretrain.methods.base import (
    Batch,
    Method,
    MethodOutput,
    Metrics,
    class_metrics,
    contrastive_metrics,
    metrics_of_all,
)


@dataclass(frozen=True)
class InstDiscArgs:
    """INST_DISC.*"""

    # softmax is the non-parametric one, over all images
    LOSS: str = one_of(("nce", "softmax", "parametric"), "nce")
    K: int = at_least(1, 4096)  # noise samples for each query, the paper's m
    T: float = at_least(1e-6, 0.07)  # temperature
    Z: float = at_least(0, 0.0)  # the normalising constant; 0 estimates it on the first batch
    # Later batches move it by a share of 1 - Z_MOMENTUM; 1 keeps it constant as the paper does.
    Z_MOMENTUM: float = within(0, 1, 1.0)
    PROXIMAL: float = at_least(0, 0.0)  # lambda of the proximal term
    SHARED_NEGATIVES: bool = False  # one draw of noise for all queries of a step

    def __post_init__(self) -> None:
        if self.LOSS == "parametric" and self.PROXIMAL > 0:
            raise InputError(
                f"INST_DISC.PROXIMAL {self.PROXIMAL:g} needs a bank and INST_DISC.LOSS parametric "
                "has none: set it to 0"
            )


class _InstDisc(BankMethod):
    """Adds the proximal term, lambda times the squared distance to the image's own row.

    Wu et al. 2018, Section 3.3, Eq. 9-10. Where features and rows have nothing to do with each
    other it is 2 lambda.
    """

    def __init__(self, encoder: Encoder, bank: Bank, args: InstDiscArgs) -> None:
        super().__init__(encoder, bank, shared_negatives=args.SHARED_NEGATIVES)
        self.args = args

    def with_proximal(
        self, loss: Tensor, q: Tensor, batch: Batch, before: Tensor, metrics: Metrics
    ) -> MethodOutput:
        """The output for features q [n, C] whose rows are `before` [n, C]."""
        if self.args.PROXIMAL > 0:
            distance = proximal(q, before, weight=self.bank.weight(batch.indices))
            loss = loss + self.args.PROXIMAL * distance
            metrics = {**metrics, "proximal": distance.detach()}
        return MethodOutput(loss, metrics, q.detach())

    def notes(self) -> list[str]:
        weight = self.args.PROXIMAL
        return [
            *super().notes(),
            f"proximal term: lambda {weight:g}" if weight else "proximal term: off",
        ]


class InstDiscNCE(_InstDisc):
    """Noise-contrastive estimation with m = K noise samples (Wu et al. 2018, Section 3.2).

    Noise is uniform over all images, the query's own among them: P_n = 1/n is what the loss is
    derived for. Z is given, or a Monte-Carlo estimate on the first batch (Eq. 8). With Z_MOMENTUM
    below 1 each batch's estimate moves it, from the next batch on.
    """

    log_z: Tensor

    def __init__(self, encoder: Encoder, bank: Bank, args: InstDiscArgs) -> None:
        super().__init__(encoder, bank, args)
        self.dictionary_size = args.K
        self.chance_loss = nce_chance(args.K) + 2.0 * args.PROXIMAL
        # nan until it is estimated
        self.register_buffer("log_z", torch.tensor(math.log(args.Z) if args.Z > 0 else math.nan))
        self._z_is_known = args.Z > 0
        self._estimates: list[Tensor] = []

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Tensor:
        """The rows [n, m] that are the share's noise; before the first step, Z as well."""
        rows = self.draw(batch.indices, self.args.K)
        self._estimates = []
        if not self._z_is_known:  # asks the device once, not at every step
            weight = self.bank.weight(batch.indices)
            # Where the random start is skipped, most rows must be features before they can tell.
            rows_can_tell = weight is None or float(gather(weight).mean()) > 0.5
            if self.log_z.isnan() and rows_can_tell:
                self.log_z.copy_(self._first_log_z(batch, rows))
            self._z_is_known = not bool(self.log_z.isnan())
        return rows

    def forward(self, batch: Batch, keys: Tensor | None) -> MethodOutput:
        assert keys is not None
        q = self.embed(batch.views[0])  # n x C
        before = self.bank.read(batch.indices)  # n x C
        positive = (q * before).sum(dim=1)  # n
        negative = self.similarity(q, keys)  # n x m
        if self.args.Z_MOMENTUM < 1 and self._z_is_known:
            self._estimates.append(self._log_z_of(negative.detach()))
        log_z, weight = self.log_z, self.bank.weight(batch.indices)
        if not self._z_is_known:  # the random start is skipped: nothing counts yet
            log_z = torch.zeros_like(log_z)
            weight = None if weight is None else torch.zeros_like(weight)
        images = self.bank.images
        loss = nce(positive, negative, self.args.T, log_z=log_z, images=images, weight=weight)
        metrics = contrastive_metrics(q, positive, negative, keys == batch.indices[:, None])
        return self.with_proximal(loss, q, batch, before, metrics)

    @torch.no_grad()
    def after_step(self, indices: Tensor, features: Tensor) -> None:
        """Write the bank, and move Z where it is not a constant."""
        super().after_step(indices, features)
        if self._estimates:
            momentum = self.args.Z_MOMENTUM
            found = _log_mean_exp(gather(torch.stack(self._estimates)))
            old = math.log(momentum) if momentum else -math.inf
            self.log_z.copy_(torch.logaddexp(self.log_z + old, found + math.log1p(-momentum)))
            self._estimates = []

    @property
    def settled(self) -> bool:
        return self._z_is_known

    @property
    def z(self) -> float:
        """Z; nan until it is estimated."""
        return float(self.log_z.double().exp())

    def _log_z_of(self, negative: Tensor) -> Tensor:
        return log_z_estimate(negative, self.args.T, images=self.bank.images)

    def _first_log_z(self, batch: Batch, rows: Tensor) -> Tensor:
        """ln Z over the whole global batch; batch norm's running statistics stay as they are."""
        kept = [buffer.clone() for buffer in self.encoder.buffers()]
        cuts = [part * len(rows) // self.parts for part in range(self.parts + 1)]
        q = torch.cat([self.embed(batch.views[0][a:b]) for a, b in itertools.pairwise(cuts)])
        for buffer, before in zip(self.encoder.buffers(), kept, strict=True):
            buffer.copy_(before)
        return _log_mean_exp(gather(self._log_z_of(self.similarity(q, rows))[None]))

    def notes(self) -> list[str]:
        z = "estimated on the first batch" if math.isnan(self.z) else f"{self.z:.6g}"
        momentum = self.args.Z_MOMENTUM
        moves = "constant" if momentum == 1 else f"momentum {momentum:g}"
        whose = "one draw for all queries" if self.shared_negatives else "a draw for each query"
        return [*super().notes(), f"NCE: {self.args.K} noise samples, {whose}; Z {z}, {moves}"]

    def gauges(self) -> dict[str, float]:
        return {**super().gauges(), "z": self.z}


class InstDiscSoftmax(_InstDisc):
    """The full non-parametric softmax over all images (Wu et al. 2018, Section 3.1, Eq. 2-3)."""

    def __init__(self, encoder: Encoder, bank: Bank, args: InstDiscArgs) -> None:
        super().__init__(encoder, bank, args)
        self.dictionary_size = bank.images - 1
        self.chance_loss = math.log(bank.images) + 2.0 * args.PROXIMAL

    def forward(self, batch: Batch, keys: Tensor | None) -> MethodOutput:
        q = self.embed(batch.views[0])  # n x C
        similarity = q @ self.bank.rows.float().t()  # n x images
        metrics = metrics_of_all(q, similarity.detach(), batch.indices)
        if self.bank.skip_unseen:
            out = (~self.bank.seen).expand_as(similarity)
            out = out.scatter(1, batch.indices[:, None], False)
            similarity = similarity.masked_fill(out, -math.inf)
        weight = self.bank.weight(batch.indices)
        loss = softmax_over_all(similarity, batch.indices, self.args.T, weight=weight)
        return self.with_proximal(loss, q, batch, self.bank.read(batch.indices), metrics)


class InstDiscParametric(Method):
    """The parametric softmax (Wu et al. 2018, Section 3.1, Eq. 1): a weight vector for each image.

    The weights are trained by gradient; features are not normalised and there is no temperature.
    """

    def __init__(self, encoder: Encoder, *, images: int) -> None:
        super().__init__(encoder)
        self.classifier = nn.Linear(encoder.dim, images, bias=False)
        self.chance_loss = math.log(images)

    def forward(self, batch: Batch, keys: Tensor | None) -> MethodOutput:
        v = self.encoder(batch.views[0], bfloat16=self.use_bfloat16)  # n x C
        scores = self.classifier(v)  # n x images
        q = F.normalize(v.detach(), dim=1)
        metrics = class_metrics(scores.detach(), batch.indices, q)
        return MethodOutput(F.cross_entropy(scores, batch.indices), metrics, q)

    def notes(self) -> list[str]:
        images = self.classifier.out_features
        return [f"parametric softmax: one trained weight vector for each of {images} images"]


def _log_mean_exp(values: Tensor) -> Tensor:
    return values.logsumexp(dim=0) - math.log(len(values))
