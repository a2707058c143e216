"""Boxes as tensors: coding, overlap, matching and sampling.

Boxes are (..., 4) xyxy in absolute pixels of the network's input, continuous coordinates: a box
that covers the whole of a W x H image is (0, 0, W, H). M is the number of ground-truth boxes,
R the number of anchors or proposals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from moco_det.standalone.fixed_size import constant, to_device

# exp() of a larger log-size would blow a 16-pixel box beyond any image (Faster R-CNN's clamp)
LOG_SIZE_CLAMP = math.log(1000.0 / 16)


@dataclass(frozen=True)
class BoxCoder:
    """(dx, dy, dw, dh) between boxes (Girshick et al. 2014, appendix C), scaled by weights.

    Their loss is Huber-like; ``smooth_l1_beta`` 0 makes it L1 (Girshick 2015, equation 3, for 1).
    """

    weights: tuple[float, float, float, float]
    smooth_l1_beta: float = 0.0

    def encode(self, source: Tensor, target: Tensor) -> Tensor:
        """Deltas (..., 4) that turn each source box into its target box; source sizes > 0."""
        source_size = source[..., 2:] - source[..., :2]
        target_size = target[..., 2:] - target[..., :2]
        source_centre = source[..., :2] + 0.5 * source_size
        target_centre = target[..., :2] + 0.5 * target_size
        weights = constant(self.weights, source)
        shift = weights[:2] * (target_centre - source_centre) / source_size
        scale = weights[2:] * torch.log(target_size / source_size)
        return torch.cat([shift, scale], dim=-1)

    def decode(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Apply deltas (R, C * 4) to boxes (R, 4): (R, C * 4) boxes, in float32."""
        rows, columns = deltas.shape
        shaped = deltas.float().reshape(rows, columns // 4, 4)  # R, C, 4
        boxes = boxes.float()[:, None]  # R, 1, 4
        size = boxes[..., 2:] - boxes[..., :2]
        centre = boxes[..., :2] + 0.5 * size
        shaped = shaped / constant(self.weights, shaped)
        new_centre = shaped[..., :2] * size + centre
        new_size = torch.exp(shaped[..., 2:].clamp(max=LOG_SIZE_CLAMP)) * size
        decoded = torch.cat([new_centre - 0.5 * new_size, new_centre + 0.5 * new_size], dim=-1)
        return decoded.reshape(rows, columns)

    def loss(self, deltas: Tensor, source: Tensor, target: Tensor, real: Tensor) -> Tensor:
        """Sum of what predicted deltas (..., 4) lose where there is a target (...)."""
        # where there is none, no difference
        goal = torch.where(real[..., None], self.encode(source, target), deltas.detach())
        if self.smooth_l1_beta < 1e-5:
            return (deltas - goal).abs().sum()
        return F.smooth_l1_loss(deltas, goal, reduction="sum", beta=self.smooth_l1_beta)


def area(boxes: Tensor) -> Tensor:
    """Width times height, (...,)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def clip(boxes: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Boxes (N, R, 4) moved inside their images, of which (height, width) is given."""
    limits = torch.tensor([(width, height) * 2 for height, width in image_sizes])
    limits = to_device(limits.to(boxes.dtype), boxes.device)[:, None]
    return torch.minimum(boxes.clamp(min=0), limits)


def nonempty(boxes: Tensor, threshold: float = 0.0) -> Tensor:
    """Mask (...,) of boxes whose both sides are longer than a threshold."""
    return ((boxes[..., 2:] - boxes[..., :2]) > threshold).all(dim=-1)


def pairwise_iou(ground_truth: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union (..., M, R) of every ground-truth box with every box."""
    x0, y0, x1, y1 = ground_truth[..., None].unbind(dim=-2)  # ..., M, 1
    left, top, right, bottom = boxes[..., None, :, :].unbind(dim=-1)  # ..., 1, R
    width = (torch.min(x1, right) - torch.max(x0, left)).clamp(min=0)
    overlap = width * (torch.min(y1, bottom) - torch.max(y0, top)).clamp(min=0)
    union = area(ground_truth)[..., None] + area(boxes)[..., None, :] - overlap
    return torch.where(overlap > 0, overlap / union, overlap.new_zeros(1))


def overlaps(
    ground_truth: Tensor, real: Tensor, boxes: Tensor, present: Tensor | None = None
) -> Tensor:
    """Intersection over union (N, M, R) of N images: boxes (N, R, 4), or (R, 4) common to all.

    Rows of ground-truth boxes (N, M, 4) that are not ``real`` (N, M), and boxes that are not
    ``present`` (N, R), are -1.
    """
    both = real[..., None]
    if present is not None:
        both = both & present[:, None]
    return torch.where(both, pairwise_iou(ground_truth, boxes), -1.0)


@dataclass(frozen=True)
class Matcher:
    """Label boxes by their best overlap with the ground truth (Ren et al. 2015, section 3.1.2).

    ``thresholds`` cut [0, 1] into intervals, closed below; ``labels`` name them: 1 positive,
    0 negative, -1 ignored. With ``allow_low_quality`` the boxes that overlap a ground truth
    best, ties included, are positive however little they overlap it.
    """

    thresholds: Sequence[float]
    labels: Sequence[int]
    allow_low_quality: bool

    def __call__(self, iou: Tensor) -> tuple[Tensor, Tensor]:
        """From iou (..., M, R): index of the matched ground truth and label int8, both (..., R).

        A negative overlap says that there is no such box.
        """
        shape = (*iou.shape[:-2], iou.shape[-1])
        if iou.shape[-2] == 0 or iou.shape[-1] == 0:
            nothing = iou.new_zeros(shape, dtype=torch.int64)
            return nothing, iou.new_full(shape, self.labels[0], dtype=torch.int8)
        best, index = iou.max(dim=-2)
        names = constant(self.labels, best).to(torch.int8)
        labels = names[torch.bucketize(best, constant(self.thresholds, best), right=True)]
        if self.allow_low_quality:
            best_of_each = iou.max(dim=-1, keepdim=True).values.clamp(min=0)  # ..., M, 1
            labels.masked_fill_((iou == best_of_each).any(dim=-2), 1)
        return index, labels
