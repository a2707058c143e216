"""Contrastive losses: tensors in, scalar out, no state.

Letters: N queries, C feature dimensions, K negatives, T temperature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce_logits(q: Tensor, k_pos: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Logits of the (K+1)-way choice, [N, 1+K]; the positive key is column 0.

    q and k_pos are [N, C]; negatives are [K, C], shared by all queries, or [N, K, C], one set
    for each query. Features are expected to be L2-normalised. MoCo paper, Eqn. 1 and Algorithm 1.
    """
    positive = (q * k_pos).sum(dim=1, keepdim=True)  # N x 1
    if negatives.dim() == 2:
        negative = q @ negatives.t()  # N x K
    else:
        negative = torch.einsum("nc,nkc->nk", q, negatives)
    return torch.cat([positive, negative], dim=1) / temperature


def first_is_positive(logits: Tensor) -> Tensor:
    """Cross-entropy of logits [N, 1+K] whose right answer is always column 0, mean over N."""
    labels = torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)
    return F.cross_entropy(logits, labels)


def info_nce(q: Tensor, k_pos: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """InfoNCE, the mean over queries of -log(exp(q.k+/T) / sum over k+ and k- of exp(q.k/T)).

    Shapes as in `info_nce_logits`. With all similarities equal it is ln(K+1).
    MoCo paper, Section 3.1, Eqn. 1.
    """
    return first_is_positive(info_nce_logits(q, k_pos, negatives, temperature))
