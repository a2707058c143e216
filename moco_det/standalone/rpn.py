"""Region proposal network (Ren et al. 2015).

Letters: N images, L feature maps, A anchors a cell, R = sum of H * W * A anchors an image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, nms

from moco_det.resnet import Conv2d
from moco_det.standalone.anchors import AnchorGenerator
from moco_det.standalone.boxes import (
    BoxCoder,
    Matcher,
    nonempty,
    overlaps,
    smooth_l1_sum,
    subsample,
)
from moco_det.standalone.precision import at_least_float32
from moco_det.standalone.recording import note


@dataclass
class Targets:
    """Ground truth of one image: boxes (M, 4), classes (M,), and masks where they are trained.

    ``masks`` holds one instance each: a list of polygons (x, y, x, y ... arrays) or a bool array
    of the input image's size.
    """

    boxes: Tensor
    classes: Tensor
    masks: list | None = None


@dataclass
class Proposals:
    """Candidate boxes (P, 4) of one image, best first, with objectness logits (P,)."""

    boxes: Tensor
    logits: Tensor


# Overlaps of more boxes than this are computed image by image, for their memory.
MATCHED_AT_ONCE = 2**22


class RPNHead(nn.Module):
    """A 3x3 convolution, then objectness (A) and deltas (4 A) by 1x1 convolutions."""

    def __init__(self, *, in_channels: int, num_anchors: int) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, in_channels, 3, padding=1, relu=True)
        self.objectness_logits = nn.Conv2d(in_channels, num_anchors, 1)
        self.anchor_deltas = nn.Conv2d(in_channels, num_anchors * 4, 1)
        for layer in (self.conv, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

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

    def at(
        self, maps: Sequence[Tensor], level: Tensor, image: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What ``forward`` gives at S cells alone: logits (S, A) and deltas (S, A, 4), float32.

        ``level``, ``image`` and ``cell`` (S,), y * W + x, say where in maps (N, channels, H, W).
        """
        padded = [F.pad(f.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)) for f in maps]  # N, H, W, C
        around = torch.cat([f.flatten(0, 2) for f in padded])
        widths = [f.shape[2] for f in padded]
        areas = [f.shape[1] * f.shape[2] for f in padded]
        before = itertools.accumulate([0, *(f.shape[0] * f.shape[1] * f.shape[2] for f in padded)])
        width, area, first = (
            torch.tensor(list(values)).to(cell.device, non_blocking=True)[level]
            for values in (widths, areas, before)
        )
        corner = first + image * area + cell // (width - 2) * width + cell % (width - 2)
        step = torch.arange(3, device=cell.device)
        window = step[:, None] * width[:, None, None] + step  # S, 3, 3
        places = (corner[:, None, None] + window).flatten()
        patches = around.index_select(0, places).reshape(len(cell), -1)
        weight = self.conv.weight.permute(0, 2, 3, 1).flatten(1)
        hidden = F.relu_(F.linear(patches, weight, self.conv.bias))
        score, delta = (
            at_least_float32(F.linear(hidden, layer.weight.flatten(1), layer.bias))
            for layer in (self.objectness_logits, self.anchor_deltas)
        )
        return score, delta.reshape(len(cell), score.shape[1], 4)


class RPN(nn.Module):
    """Proposals of every image and, in training, the two losses of the proposals' network."""

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        head: RPNHead,
        anchors: AnchorGenerator,
        matcher: Matcher,
        coder: BoxCoder,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_topk: tuple[int, int],
        post_nms_topk: tuple[int, int],
        nms_threshold: float,
        min_box_size: float,
        loss_weight: float,
        box_loss_weight: float,
        smooth_l1_beta: float,
    ) -> None:
        super().__init__()
        self.in_features = tuple(in_features)
        self.rpn_head = head
        self.anchors = anchors
        self.per_cell = anchors.per_cell[0]
        self.matcher = matcher
        self.coder = coder
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.pre_nms_topk = pre_nms_topk
        self.post_nms_topk = post_nms_topk
        self.nms_threshold = nms_threshold
        self.min_box_size = min_box_size
        self.loss_weight = loss_weight
        self.box_loss_weight = box_loss_weight
        self.smooth_l1_beta = smooth_l1_beta

    def forward(
        self,
        features: dict[str, Tensor],
        image_sizes: Sequence[tuple[int, int]],
        targets: Sequence[Targets] | None = None,
    ) -> tuple[list[Proposals], dict[str, Tensor]]:
        """Feature maps and (height, width) of each image to proposals and losses."""
        maps = [features[name] for name in self.in_features]
        anchors = self.anchors(maps)
        losses: dict[str, Tensor] = {}
        if self.training:
            if targets is None:
                raise ValueError("the RPN needs targets in training")
            losses = self.losses(anchors, maps, targets)
        with torch.no_grad():  # the proposals are constants
            logits, deltas = self.rpn_head(maps)
        return self.propose(anchors, logits, deltas, image_sizes), losses

    def losses(
        self,
        anchors: Sequence[Tensor],
        maps: Sequence[Tensor],
        targets: Sequence[Targets],
    ) -> dict[str, Tensor]:
        """Objectness (binary cross-entropy) and box (smooth L1) losses over a sample of anchors.

        Both are sums over the sample divided by ``batch_size_per_image * N``. The head is computed
        at the sampled cells alone, a few hundred of many thousands, and so is its gradient.
        """
        every = torch.cat(list(anchors))  # R, 4
        samples = self.sample(every, [target.boxes for target in targets])
        positives = torch.cat([positive for positive, _, _ in samples])
        negatives = torch.cat([negative for _, negative, _ in samples])
        images = [
            torch.arange(len(samples), device=every.device).repeat_interleave(
                torch.tensor([sample[kind].numel() for sample in samples], device=every.device)
            )
            for kind in (0, 1)
        ]
        logits, deltas = self.outputs(
            maps,
            [len(level) for level in anchors],
            torch.cat(images),
            torch.cat([positives, negatives]),
        )
        truth = torch.zeros_like(logits)
        truth[: len(positives)] = 1.0
        goals = [
            self.coder.encode(every[positive], target.boxes[matched[positive]])
            for (positive, _, matched), target in zip(samples, targets, strict=True)
        ]
        note("rpn/num_pos_anchors", len(positives) / len(targets))
        note("rpn/num_neg_anchors", len(negatives) / len(targets))
        objectness = F.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
        localisation = smooth_l1_sum(
            deltas[: len(positives)], torch.cat(goals), self.smooth_l1_beta
        )
        scale = self.loss_weight / (self.batch_size_per_image * len(targets))
        return {
            "loss_rpn_cls": objectness * scale,
            "loss_rpn_loc": localisation * scale * self.box_loss_weight,
        }

    def outputs(
        self, maps: Sequence[Tensor], counts: Sequence[int], images: Tensor, sampled: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits (S,) and deltas (S, 4) of anchors (S,) of images (S,), ``counts`` a map."""
        ends = torch.tensor(counts).to(sampled.device, non_blocking=True).cumsum(0)
        level = torch.bucketize(sampled, ends, right=True)
        place = sampled - F.pad(ends, (1, 0))[level]
        score, delta = self.rpn_head.at(maps, level, images, place // self.per_cell)
        row, anchor = torch.arange(len(sampled), device=sampled.device), place % self.per_cell
        return score[row, anchor], delta[row, anchor]

    @torch.no_grad()
    def sample(
        self, anchors: Tensor, ground_truth: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each image: sampled positives and negatives, and every anchor's matched box."""
        matched, labels = self.match(anchors, ground_truth)
        size, fraction = self.batch_size_per_image, self.positive_fraction
        return [
            (*subsample(label, size, fraction, background=0), index)
            for index, label in zip(matched, labels, strict=True)
        ]

    def match(self, anchors: Tensor, ground_truth: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Matched boxes and labels of the anchors (N, R), as many images at once as fit."""
        most = max(len(boxes) for boxes in ground_truth) * len(anchors)
        step = max(1, MATCHED_AT_ONCE // max(most, 1))
        parts = [
            self.matcher(overlaps(ground_truth[i : i + step], anchors))
            for i in range(0, len(ground_truth), step)
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
    ) -> list[Proposals]:
        """The best boxes of each map, clipped, without duplicates (NMS within a map)."""
        pre_topk = self.pre_nms_topk[0 if self.training else 1]
        post_topk = self.post_nms_topk[0 if self.training else 1]
        boxes_of, scores_of, level_of = [], [], []
        for level, (anchor, logit, delta) in enumerate(zip(anchors, logits, deltas, strict=True)):
            n = logit.shape[0]
            score, index = logit.topk(min(pre_topk, logit.shape[1]), dim=1)  # N, k
            # only the best are decoded: the rest would be thrown away
            best = delta.gather(1, index[..., None].expand(-1, -1, 4))
            box = self.coder.decode(best.reshape(-1, 4), anchor[index].reshape(-1, 4))
            boxes_of.append(box.reshape(n, -1, 4))
            scores_of.append(score)
            level_of.append(torch.full_like(index[0], level))
        boxes = torch.cat(boxes_of, dim=1)
        scores = torch.cat(scores_of, dim=1)
        levels = torch.cat(level_of)

        finite = torch.isfinite(boxes).all(dim=2) & torch.isfinite(scores)
        if self.training and not bool(finite.all()):
            raise FloatingPointError("proposals became Inf or NaN")
        limits = boxes.new_tensor([(width, height) * 2 for height, width in image_sizes])
        boxes = torch.minimum(boxes.clamp(min=0), limits[:, None])
        keep = finite & nonempty(boxes, self.min_box_size)
        every = bool(keep.all())
        proposals = []
        for box, score, wanted in zip(boxes, scores, keep, strict=True):
            ids = levels
            if not every:
                box, score, ids = box[wanted], score[wanted], levels[wanted]
            kept = nms_by_level(box, score.float(), ids, self.nms_threshold, post_topk)
            proposals.append(Proposals(box[kept], score[kept]))
        return proposals


def nms_by_level(
    boxes: Tensor, scores: Tensor, levels: Tensor, threshold: float, count: int
) -> Tensor:
    """Indices of the ``count`` best boxes that NMS within each level keeps, best first.

    Only boxes with higher scores decide whether a box is kept, so on the CPU, whose NMS takes the
    square of the number of boxes, no more of them are compared than are needed for ``count``.
    """
    if boxes.device.type != "cpu":
        return batched_nms(boxes, scores, levels, threshold)[:count]
    order = scores.argsort(descending=True, stable=True)
    looked = 2 * count
    while True:
        best = order[:looked]
        box, score, level = boxes[best], scores[best], levels[best]
        kept = torch.zeros(len(best), dtype=torch.bool)
        for one in level.unique():
            rows = (level == one).nonzero(as_tuple=True)[0]
            kept[rows[nms(box[rows], score[rows], threshold)]] = True
        found = best[kept]
        if len(found) >= count or looked >= len(order):
            return found[:count]
        looked *= 2


# Ground truth joins the proposals with the logit of an almost certain object.
GROUND_TRUTH_LOGIT = math.log((1.0 - 1e-10) / (1 - (1.0 - 1e-10)))


def add_ground_truth(proposals: Proposals, boxes: Tensor) -> Proposals:
    """Proposals followed by the ground-truth boxes."""
    logits = proposals.logits.new_full((len(boxes),), GROUND_TRUTH_LOGIT)
    return Proposals(torch.cat([proposals.boxes, boxes]), torch.cat([proposals.logits, logits]))
