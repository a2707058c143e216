"""Shuffling BN (MoCo paper, Section 3.3): keys and queries get other batch-norm statistics.

Batch norm works on groups: the sub-batches of each process. Without shuffling, a query and its
positive key are in groups of the same images, and the statistics betray which key is whose. So
the key views of all processes are permuted before they are grouped, and the keys are put back
after. Within a single group a permutation changes no statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moco_det.foundation.collectives import gather, own_share, world_size


def groups(bn_splits: int) -> int:
    """Groups of batch norm over all processes, `bn_splits` in each."""
    return bn_splits * world_size()


def shuffle(view: Tensor) -> tuple[Tensor, Tensor]:
    """This process's share [n, 3, H, W] of all processes' views, permuted, and the order [N].

    The order is drawn on the views' device from torch's generator, whose state all processes share,
    so that any number of them draws the same.
    """
    whole = gather(view)  # N x 3 x H x W
    order = torch.randperm(len(whole), device=view.device)
    layout = (
        torch.channels_last
        if view.is_contiguous(memory_format=torch.channels_last)
        else torch.contiguous_format
    )
    return whole[own_share(order)].contiguous(memory_format=layout), order


def put_back(keys: Tensor, order: Tensor) -> Tensor:
    """All processes' keys [N, C], which came in the order of `shuffle`, as the images lie."""
    return keys[order.argsort()]


def note(bn_splits: int, *, asked: bool) -> str:
    """The line of the log that says whether shuffling BN is active."""
    total, processes = groups(bn_splits), world_size()
    where = f"{total} groups ({processes} x {bn_splits}, processes x sub-batches)"
    if total == 1:
        what = "asked for, but does nothing" if asked else "off"
        return (
            f"shuffling BN: {what}: batch norm sees one group, so keys share their query's "
            "statistics; ENCODER.BN_SPLITS makes more"
        )
    if not asked:
        return f"shuffling BN: off over {where}: keys share their query's statistics"
    return f"shuffling BN: on over {where}"
