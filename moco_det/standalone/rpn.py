"""Region proposal network (Ren et al. 2015).

Letters: N images, L feature maps, A anchors per cell, R = sum of H * W * A anchors per image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms as torchvision_nms

from moco_det.foundation.precision import at_least_float32
from moco_det.resnet.layers import Conv2d, normal_fill
from moco_det.standalone.anchors import AnchorGenerator
from moco_det.standalone.boxes import BoxCoder, Matcher, clip, nonempty, overlaps
from moco_det.standalone.fixed_size import is_fixed, nms, pad, present, subsample, take
from moco_det.standalone.recording import is_recording, note
from moco_det.standalone.targets import GroundTruth


class Proposals(NamedTuple):
    """Candidates of N images, best first: boxes (N, P, 4), logits (N, P), which are real (N, P)."""

    boxes: Tensor
    logits: Tensor
    real: Tensor


# Logits (N, R_i) and deltas (N, R_i, 4) of each of L maps.
Outputs = tuple[Sequence[Tensor], Sequence[Tensor]]

# Overlaps of more boxes than this are computed image by image: on a CPU for its cache, on a GPU
# for its memory.
MATCHED_AT_ONCE = {False: 2**22, True: 2**26}


class RPNHead(nn.Module):
    """A 3x3 convolution, then objectness (A) and deltas (4 A) by 1x1 convolutions."""

    def __init__(self, *, in_channels: int, num_anchors: int) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, in_channels, 3, padding=1, relu=True)
        self.objectness_logits = nn.Conv2d(in_channels, num_anchors, 1)
        self.anchor_deltas = nn.Conv2d(in_channels, num_anchors * 4, 1)
        for layer in (self.conv, self.objectness_logits, self.anchor_deltas):
            normal_fill(layer, 0.01)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """L maps to L logits (N, H * W * A) and L deltas (N, H * W * A, 4), float32."""
        logits, deltas = [], []
        for feature in features:
            hidden = self.conv(feature)
            n, _, h, w = feature.shape
            score = at_least_float32(self.objectness_logits(hidden))
            logits.append(score.permute(0, 2, 3, 1).reshape(n, -1))
            delta = at_least_float32(self.anchor_deltas(hidden)).reshape(n, -1, 4, h, w)
            deltas.append(delta.permute(0, 3, 4, 1, 2).reshape(n, -1, 4))
        return logits, deltas

    def at(self, maps: Sequence[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """What ``forward`` gives for anchors (N, S) alone: logits (N, S) and deltas (N, S, 4)."""
        padded = [F.pad(f.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)) for f in maps]  # N, H, W, C
        around = torch.cat([f.flatten(0, 2) for f in padded])
        images, heights, widths = torch.tensor([f.shape[:3] for f in padded]).unbind(1)
        per_cell = self.objectness_logits.out_channels
        ends = ((heights - 2) * (widths - 2) * per_cell).cumsum(0)
        anchor = index.flatten()
        level = torch.bucketize(anchor, ends, right=True)
        anchor = anchor - F.pad(ends, (1, 0))[level]
        cell, width = anchor // per_cell, widths[level]
        first = F.pad((images * heights * widths).cumsum(0), (1, 0))[level]
        first += (
            torch.arange(len(index)).repeat_interleave(index.shape[1]) * (heights * widths)[level]
        )
        corner = first + cell // (width - 2) * width + cell % (width - 2)
        step = torch.arange(3)
        window = step[:, None] * width[:, None, None] + step  # 3, 3 of each
        places = (corner[:, None, None] + window).flatten()
        patches = around.index_select(0, places).reshape(len(cell), -1)
        weight = self.conv.weight.permute(0, 2, 3, 1).flatten(1)
        hidden = F.relu_(F.linear(patches, weight, self.conv.bias))
        scores, deltas = (
            at_least_float32(F.linear(hidden, layer.weight.flatten(1), layer.bias))
            for layer in (self.objectness_logits, self.anchor_deltas)
        )
        own = torch.arange(len(cell)), anchor % per_cell
        deltas = deltas.reshape(len(cell), per_cell, 4)
        return scores[own].view(index.shape), deltas[own].view(*index.shape, 4)


@dataclass(eq=False, repr=False, kw_only=True)
class RPN(nn.Module):
    """Proposals of every image and, in training, the two losses of the proposals' network.

    What is kept before and after NMS differs in training and in testing.
    """

    in_features: Sequence[str]
    head: InitVar[RPNHead]
    anchors: AnchorGenerator
    matcher: Matcher
    coder: BoxCoder
    batch_size_per_image: int
    positive_fraction: float
    pre_nms_topk: tuple[int, int]
    post_nms_topk: tuple[int, int]
    nms_threshold: float
    min_box_size: float
    loss_weight: float
    box_loss_weight: float

    def __post_init__(self, head: RPNHead) -> None:
        super().__init__()
        self.rpn_head = head

    def forward(
        self,
        features: dict[str, Tensor],
        image_sizes: Sequence[tuple[int, int]],
        truth: GroundTruth | None = None,
        outputs: Outputs | None = None,
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """Feature maps and (height, width) of each image to proposals and losses.

        ``outputs`` are those of the head, where they are known already.
        """
        maps = [features[name] for name in self.in_features]
        anchors = self.anchors(maps)
        losses: dict[str, Tensor] = {}
        if outputs is None and (is_fixed(maps[0]) or not self.training):
            outputs = self.rpn_head(maps)
        if self.training:
            assert truth is not None
            losses = self.losses(anchors, maps, truth, outputs)
        if outputs is None:
            with torch.no_grad():  # the proposals are constants
                outputs = self.rpn_head(maps)
        logits, deltas = outputs
        return self.propose(anchors, logits, deltas, image_sizes), losses

    def losses(
        self,
        anchors: Sequence[Tensor],
        maps: Sequence[Tensor],
        truth: GroundTruth,
        outputs: Outputs | None = None,
    ) -> dict[str, Tensor]:
        """Objectness (binary cross-entropy) and box (smooth L1) losses over a sample of anchors.

        Both are sums over the sample divided by ``batch_size_per_image * N``. Without the head's
        ``outputs`` it is computed at the sampled cells alone, a few hundred of many thousands, and
        so is its gradient: on a CPU that is the faster way.
        """
        every = torch.cat(list(anchors))  # R, 4
        matched, labels = self.match(every, truth)
        index, positive, real = subsample(
            labels, self.batch_size_per_image, self.positive_fraction, background=0
        )
        burst: Tensor | float = 0.0
        if outputs is None:
            logits, deltas = self.rpn_head.at(maps, index)
        else:
            scores, moves = (torch.cat(list(parts), dim=1) for parts in outputs)
            logits, deltas = scores.gather(1, index), take(moves, index)
            # Inf or NaN anywhere is one in the loss, where it is seen without waiting now
            burst = 0.0 * (scores.detach().sum() + moves.detach().sum())
        if is_recording():
            note("rpn/num_pos_anchors", positive.sum() / len(index))
            note("rpn/num_neg_anchors", (real & ~positive).sum() / len(index))
        objectness = F.binary_cross_entropy_with_logits(
            logits, positive.to(logits.dtype), weight=real.to(logits.dtype), reduction="sum"
        )
        goals = take(truth.boxes, matched.gather(1, index))
        localisation = self.coder.loss(deltas, every[index], goals, positive)
        scale = self.loss_weight / (self.batch_size_per_image * len(index))
        return {
            "loss_rpn_cls": objectness * scale + burst,
            "loss_rpn_loc": localisation * scale * self.box_loss_weight,
        }

    @torch.no_grad()
    def match(self, anchors: Tensor, truth: GroundTruth) -> tuple[Tensor, Tensor]:
        """Matched boxes and labels of the anchors (N, R), as many images at once as fit."""
        most = truth.boxes.shape[1] * len(anchors)
        step = max(1, MATCHED_AT_ONCE[is_fixed(anchors)] // max(most, 1))
        parts = [
            self.matcher(overlaps(boxes, real, anchors))
            for boxes, real in zip(truth.boxes.split(step), truth.real.split(step), strict=True)
        ]
        matched, labels = zip(*parts, strict=True)
        return torch.cat(matched), torch.cat(labels)

    @torch.no_grad()
    def propose(
        self,
        anchors: Sequence[Tensor],
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> Proposals:
        """The best boxes of each map, clipped, without duplicates (NMS within a map)."""
        pre_topk, post_topk = (
            kept[not self.training] for kept in (self.pre_nms_topk, self.post_nms_topk)
        )
        parts = []
        for anchor, logit, delta in zip(anchors, logits, deltas, strict=True):
            score, index = logit.topk(min(pre_topk, logit.shape[1]), dim=1)  # N, k
            # only the best are decoded: the rest would be thrown away
            parts.append((score, take(delta, index), anchor[index]))
        counts = [score.shape[1] for score, _, _ in parts]
        scores, moves, starts = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        boxes = self.coder.decode(moves.flatten(0, 1), starts.flatten(0, 1))
        boxes = boxes.view(*scores.shape, 4)

        finite = torch.isfinite(boxes).all(dim=2) & torch.isfinite(scores)
        boxes = clip(boxes, image_sizes)
        keep = finite & nonempty(boxes, self.min_box_size)
        if is_fixed(boxes):
            return best_of_levels(boxes, scores, keep, counts, self.nms_threshold, post_topk)
        if self.training and not bool(finite.all()):
            raise FloatingPointError("proposals became Inf or NaN")
        levels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        rows = []
        for box, score, wanted in zip(boxes, scores, keep, strict=True):
            index = wanted.nonzero(as_tuple=True)[0]
            kept = nms_by_level(
                box[index], score[index].float(), levels[index], self.nms_threshold, post_topk
            )
            rows.append(index[kept])
        index = pad(rows)
        return Proposals(take(boxes, index), take(scores, index), present(rows))


def best_of_levels(
    boxes: Tensor, scores: Tensor, keep: Tensor, counts: Sequence[int], threshold: float, count: int
) -> Proposals:
    """The ``count`` best that NMS within each level keeps, of boxes (N, R, 4).

    The ``counts`` boxes of each level come best first. All levels of all images are done at once.
    """
    most = max(counts)

    def by_level(rows: Tensor) -> Tensor:
        parts = [
            F.pad(part, (0, 0) * (part.dim() - 2) + (0, most - part.shape[1]))
            for part in rows.split(list(counts), dim=1)
        ]
        return torch.stack(parts, dim=1).flatten(0, 1)  # N * L, most, ...

    box, score, real = by_level(boxes), by_level(scores), by_level(keep)
    kept = nms(box, None, real, threshold, count).view(len(boxes), -1)
    score = score.view(len(boxes), -1).masked_fill(~kept, -math.inf)
    logits, index = score.topk(min(count, score.shape[1]), dim=1)
    return Proposals(take(box.view(len(boxes), -1, 4), index), logits, kept.gather(1, index))


def nms_by_level(
    boxes: Tensor, scores: Tensor, levels: Tensor, threshold: float, count: int
) -> Tensor:
    """Indices of the ``count`` best boxes that NMS within each level keeps, best first.

    Only boxes with higher scores decide whether a box is kept, and NMS takes the square of the
    number of boxes, so no more of them are compared than are needed for ``count``.
    """
    order = scores.argsort(descending=True, stable=True)
    looked = 2 * count
    while True:
        best = order[:looked]
        box, score, level = boxes[best], scores[best], levels[best]
        kept = torch.zeros(len(best), dtype=torch.bool)
        for one in level.unique():
            rows = (level == one).nonzero(as_tuple=True)[0]
            kept[rows[torchvision_nms(box[rows], score[rows], threshold)]] = True
        found = best[kept]
        if len(found) >= count or looked >= len(order):
            return found[:count]
        looked *= 2


# Ground truth joins the proposals with the logit of an almost certain object.
GROUND_TRUTH_LOGIT = math.log((1.0 - 1e-10) / (1 - (1.0 - 1e-10)))


def add_ground_truth(proposals: Proposals, truth: GroundTruth) -> Proposals:
    """Proposals followed by the ground-truth boxes."""
    logits = proposals.logits.new_full(truth.real.shape, GROUND_TRUTH_LOGIT)
    both = zip(proposals, (truth.boxes, logits, truth.real), strict=True)
    return Proposals(*(torch.cat(pair, dim=1) for pair in both))
