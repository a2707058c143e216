"""The losses of instance discrimination: tensors in, scalar out, no state.

Letters: N queries, C feature dimensions, K negatives (the noise samples m of Wu et al. 2018),
n images, T temperature. Similarities are inner products of L2-normalised features, in float32.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(
    positive: Tensor, negative: Tensor, temperature: float, *, weight: Tensor | None = None
) -> Tensor:
    """InfoNCE, the mean over queries of -log(exp(q.k+/T) / sum over k+ and k- of exp(q.k/T)).

    `positive` [N] and `negative` [N, K] are similarities; one of -inf drops a negative out, a
    `weight` [N] of 0 a query. With all similarities equal it is ln(K+1). MoCo paper, Section 3.1,
    Eqn. 1.
    """
    logits = torch.cat([positive[:, None], negative], dim=1).div_(temperature)  # N x (1+K)
    first = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return _mean(F.cross_entropy(logits, first, reduction="none"), weight)


def softmax_over_all(
    similarity: Tensor, own: Tensor, temperature: float, *, weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy of choosing column `own` [N] of similarities [N, n], mean over queries.

    Over a bank of all images it is the full non-parametric softmax (Wu et al. 2018, Section 3.1,
    Eq. 2-3); over the keys of the batch, InfoNCE whose negatives are the other images' keys.
    """
    return _mean(F.cross_entropy(similarity / temperature, own, reduction="none"), weight)


def nce(
    positive: Tensor,
    negative: Tensor,
    temperature: float,
    *,
    log_z: Tensor,
    images: int,
    weight: Tensor | None = None,
) -> Tensor:
    """Noise-contrastive estimation over n = `images` classes with uniform noise, mean over queries.

    With P = exp(s/T) / Z and h = P / (P + m/n), a query costs -ln h of its positive and
    -ln(1-h) of each of its m noise samples (Wu et al. 2018, Section 3.2, Eq. 4-7). `positive` [N]
    and `negative` [N, m] are similarities, `log_z` a scalar, taken as a constant.

    Where the model knows nothing, P = 1/n, it is ln(1+m) + m ln(1+1/m).
    """
    # h = sigmoid(ln P - ln(m/n)): nothing is exponentiated, so nothing overflows at a small T.
    offset = log_z.detach() + math.log(negative.shape[1] / images)
    data = F.logsigmoid(positive / temperature - offset)  # N
    noise = F.logsigmoid(offset - negative / temperature).sum(dim=1)  # N
    return _mean(-(data + noise), weight)


def nce_chance(samples: int) -> float:
    """`nce` with m = `samples` where P is 1/n for every pair."""
    return math.log1p(samples) + samples * math.log1p(1.0 / samples)


@torch.no_grad()
def log_z_estimate(negative: Tensor, temperature: float, *, images: int) -> Tensor:
    """Monte-Carlo estimate of ln Z from noise similarities of any shape, a scalar.

    Z = n times the mean of exp(s/T) over noise samples (Wu et al. 2018, Section 3.2, Eq. 8), here
    over all queries of a batch. The released code also averages the positives in, one in m+1.
    """
    logits = negative.flatten() / temperature
    return logits.logsumexp(dim=0) - math.log(logits.numel()) + math.log(images)


def proximal(features: Tensor, before: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Mean squared distance of features [N, C] to what they were an epoch before [N, C].

    The proximal term without its weight lambda (Wu et al. 2018, Section 3.3, Eq. 9-10).
    """
    return _mean((features - before).square().sum(dim=1), weight)


def _mean(losses: Tensor, weight: Tensor | None) -> Tensor:
    """Over all queries, those of weight 0 among them: as many count on every process."""
    return losses.mean() if weight is None else (losses * weight).mean()
