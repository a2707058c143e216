"""Sampling and NMS whose results have one size whatever the values: a GPU is not waited for.

The size of a boolean selection is known when the device has computed it, and until then a program
that needs it cannot launch anything more. So on a GPU what is selected is padded to the most that
there can be, with a mask of what is real. On a CPU, where nothing waits, the selections have their
own sizes, and random samples are drawn as detectron2 draws them.

Letters: N images, R boxes of an image, S boxes of a sample, B independent problems of n boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import batched_nms

# Devices that compute while the program goes on to launch: reading a value waits for them.
SYNCHRONOUS = {"cpu"}


def is_fixed(tensor: Tensor) -> bool:
    """Whether results of this tensor's device are padded to a fixed size."""
    return tensor.device.type not in SYNCHRONOUS


def has_kernels(tensor: Tensor) -> bool:
    """Whether the kernels of `kernels.py` can work on this tensor."""
    return tensor.is_cuda and find_spec("triton") is not None


def pad(rows: list[Tensor], value: float = 0.0) -> Tensor:
    """Tensors (R_i, ...) of N images as one (N, R, ...)."""
    return pad_sequence(rows, batch_first=True, padding_value=value)


def present(rows: list[Tensor]) -> Tensor:
    """Which rows of `pad` are real, (N, R)."""
    return pad([row.new_ones(len(row), dtype=torch.bool) for row in rows], False)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy to the device that the program does not wait for."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def constant(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers in a tensor's format and on its device, copied there once."""
    return _constant(tuple(values), like.dtype, like.device)


@lru_cache
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """Of rows (N, R, ...) those of each image's index (N, S): (N, S, ...)."""
    return rows[torch.arange(len(rows), device=rows.device)[:, None], index]


def off_the_map(rois: Tensor, which: Tensor) -> Tensor:
    """Rois (P, 5), those marked (P,) moved where ROIAlign adds nothing and costs nothing."""
    return torch.where(which[:, None], constant([0.0, -1e4, -1e4, -1e4, -1e4], rois), rois)


def subsample(
    labels: Tensor, count: int, positive_fraction: float, background: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A random sample of each image: indices (N, S), and which of them are positive and real.

    ``labels`` (N, R): -1 ignored, ``background`` negative, anything else positive. Positives fill
    at most ``positive_fraction`` of ``count`` and come first; negatives fill the rest. On a GPU S
    is ``count`` and the sample is that of the smallest of R random numbers, else it is drawn by
    permutations.
    """
    most = min(int(count * positive_fraction), labels.shape[1])
    if not is_fixed(labels):
        drawn = [_permuted(one, count, most, background) for one in labels]
        both = pad([torch.cat(pair) for pair in drawn])
        positives, negatives = torch.tensor([[len(p), len(n)] for p, n in drawn])[..., None].unbind(
            1
        )
        slot = torch.arange(both.shape[1])
        return both, slot < positives, slot < positives + negatives
    key = torch.rand(labels.shape, device=labels.device)
    is_negative = labels == background
    is_positive = ~is_negative & (labels != -1)
    some = min(count, labels.shape[1])
    low, positive = key.masked_fill(~is_positive, 2.0).topk(most, dim=1, largest=False)
    lowest, negative = key.masked_fill(~is_negative, 2.0).topk(some, dim=1, largest=False)
    positives = (low < 2.0).sum(dim=1, keepdim=True)  # N, 1
    negatives = (lowest < 2.0).sum(dim=1, keepdim=True)
    slot = torch.arange(some, device=labels.device).expand(len(labels), -1)
    first = slot < positives
    index = torch.where(
        first,
        positive.gather(1, slot.clamp(max=max(most - 1, 0))) if most else negative,
        negative.gather(1, (slot - positives).clamp(min=0)),
    )
    return index, first, slot < positives + negatives


def _permuted(labels: Tensor, count: int, most: int, background: int) -> tuple[Tensor, Tensor]:
    """Positives and negatives of one image; two permutations, as detectron2 draws them."""
    positive = ((labels != -1) & (labels != background)).nonzero(as_tuple=True)[0]
    negative = (labels == background).nonzero(as_tuple=True)[0]
    positives = min(positive.numel(), most)
    negatives = min(negative.numel(), count - positives)
    chosen = torch.randperm(positive.numel(), device=positive.device)[:positives]
    others = torch.randperm(negative.numel(), device=negative.device)[:negatives]
    return positive[chosen], negative[others]


def nms(boxes: Tensor, groups: Tensor | None, real: Tensor, threshold: float, count: int) -> Tensor:
    """Which of boxes (B, n, 4), best first, NMS keeps: (B, n), within each of ``groups`` (B, n).

    Boxes that are not ``real`` (B, n) are not kept and suppress none. Beyond the first ``count``
    that are kept in a problem nothing is said.
    """
    if has_kernels(boxes):
        from moco_det.standalone import kernels  # needs triton

        return kernels.nms(boxes, groups, real, threshold, count)
    keep = torch.zeros_like(real)
    for i, kept in enumerate(keep):
        index = real[i].nonzero(as_tuple=True)[0]
        group = index * 0 if groups is None else groups[i, index]
        best = batched_nms(boxes[i, index].float(), -index.float(), group, threshold)
        kept[index[best]] = True
    return keep
