"""The second stage: proposals to losses or detections, over pooled maps (FPN, DC5) or res5 (C4).

Letters: P regions of all images, C foreground classes; class index C is background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moco_det.resnet.layers import Conv2d
from moco_det.resnet.network import BottleneckBlock
from moco_det.standalone.boxes import Matcher, overlaps
from moco_det.standalone.fixed_size import is_fixed, subsample, take
from moco_det.standalone.recording import is_recording, note
from moco_det.standalone.roi_align import ROIPooler
from moco_det.standalone.roi_layers import (
    BoxHead,
    BoxPredictor,
    ImageDetections,
    MaskHead,
    Regions,
    rois_of,
)
from moco_det.standalone.rpn import Proposals, add_ground_truth
from moco_det.standalone.targets import GroundTruth


@dataclass(frozen=True)
class RegionSampler:
    """Draws the regions that a step trains on (Girshick 2015, section 2.3)."""

    num_classes: int
    matcher: Matcher
    batch_size_per_image: int
    positive_fraction: float
    append_ground_truth: bool

    @torch.no_grad()
    def draw(self, proposals: Proposals, truth: GroundTruth, *, exact: bool = False) -> Regions:
        """Match each image's proposals with its objects and draw from both kinds.

        Where sizes are fixed, an image without regions enough has rows of none, unless ``exact``.
        """
        if self.append_ground_truth:
            proposals = add_ground_truth(proposals, truth)
        matched, labels = self.matcher(
            overlaps(truth.boxes, truth.real, proposals.boxes, proposals.real)
        )
        classes = truth.classes.gather(1, matched)
        classes = classes.masked_fill(labels == 0, self.num_classes)
        classes = classes.masked_fill((labels == -1) | ~proposals.real, -1)
        index, positive, real = subsample(
            classes, self.batch_size_per_image, self.positive_fraction, self.num_classes
        )
        if is_recording():
            note("roi_head/num_fg_samples", positive.sum() / len(index))
            note("roi_head/num_bg_samples", (real & ~positive).sum() / len(index))
        n, size = index.shape
        most = int(self.batch_size_per_image * self.positive_fraction)
        matched = matched.gather(1, index)
        regions = Regions(
            torch.arange(n, device=index.device).repeat_interleave(size),
            take(proposals.boxes, index).flatten(0, 1),
            classes.gather(1, index).masked_fill(~real, -1).flatten(),
            take(truth.boxes, matched).flatten(0, 1),
            matched.flatten(),
            (size, min(most, size)),
        )
        if not is_fixed(real) or (exact and not bool(real.all())):
            return regions.select(real.flatten())
        return regions


class ROIHeads(nn.Module):
    """Box predictor and, where there is one, mask head, over features of regions.

    With a ``box_head`` these are pooled, apart for each of the two (FPN, DC5). With ``res5`` they
    are what it makes of regions of res4, shared by both: a C4 detector, Ren et al. 2015 as He et
    al. 2016 (appendix A) did it.
    """

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        sampler: RegionSampler,
        pooler: ROIPooler,
        box_predictor: BoxPredictor,
        box_head: BoxHead | None = None,
        res5: nn.Sequential | None = None,
        mask_pooler: ROIPooler | None = None,
        mask_head: MaskHead | None = None,
    ) -> None:
        super().__init__()
        self.in_features = tuple(in_features)
        self.sampler, self.pooler, self.mask_pooler = sampler, pooler, mask_pooler
        self.box_head, self.res5 = box_head, res5
        self.box_predictor, self.mask_head = box_predictor, mask_head

    def pool(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Features (P, channels, S, S) of rois (P, 5)."""
        if self.res5 is None:
            return self.pooler(maps, rois)
        first, rest = self.res5[0], self.res5[1:]
        if not isinstance(first, BottleneckBlock):
            return self.res5(self.pooler(maps, rois))
        return rest(block_of_regions(first, self.pooler, maps[0], rois))

    def predict(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and deltas of regions by their features."""
        if self.box_head is None:
            return self.box_predictor(pooled.mean(dim=(2, 3)))
        return self.box_predictor(self.box_head(pooled))

    def train_losses(
        self, features: dict[str, Tensor], proposals: Proposals, truth: GroundTruth
    ) -> dict[str, Tensor]:
        """Losses of a random sample of the proposals."""
        maps = [features[name] for name in self.in_features]
        exact = has_batch_norm(self.box_head) or has_batch_norm(self.res5)
        regions = self.sampler.draw(proposals, truth, exact=exact)
        pooled = self.pool(maps, regions.rois)
        losses = self.box_predictor.losses(*self.predict(pooled), regions)
        if self.mask_head is not None:
            exact = has_batch_norm(self.mask_head)
            rows, real = regions.foreground(self.sampler.num_classes, exact=exact)
            objects = regions.select(rows)
            pooled = self.mask_pooler(maps, objects.rois) if self.mask_pooler else pooled[rows]
            losses["loss_mask"] = mask_loss(self.mask_head, pooled, objects, real, truth)
        return losses

    def detect(
        self,
        features: dict[str, Tensor],
        proposals: Proposals,
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[ImageDetections]:
        """Detections of each image, with masks where the head has them."""
        maps = [features[name] for name in self.in_features]
        n, p = proposals.real.shape
        image = torch.arange(n, device=proposals.boxes.device).repeat_interleave(p)
        rois = rois_of(image, proposals.boxes.flatten(0, 1))
        # where sizes are fixed also those that are no proposals, else zeros stand for these
        rows = slice(None) if is_fixed(rois) else proposals.real.flatten()
        outputs = []
        for found in self.predict(self.pool(maps, rois[rows])):
            outputs.append(found.new_zeros(n * p, found.shape[1]))
            outputs[-1][rows] = found
        scores, deltas = (output.view(n, p, -1) for output in outputs)
        detections = self.box_predictor.detect(scores, deltas, proposals, image_sizes)
        if self.mask_head is not None:
            rois = torch.cat(
                [rois_of(torch.full_like(d.classes, i), d.boxes) for i, d in enumerate(detections)]
            )
            pooled = self.mask_pooler(maps, rois) if self.mask_pooler else self.pool(maps, rois)
            classes = torch.cat([d.classes for d in detections])
            masks = self.mask_head.select(pooled, classes).sigmoid()
            split = masks.split([len(d.boxes) for d in detections])
            for one, mask in zip(detections, split, strict=True):
                one.masks = mask
        return detections


def block_of_regions(
    block: BottleneckBlock, pooler: ROIPooler, feature: Tensor, rois: Tensor
) -> Tensor:
    """``block(pooler([feature], rois))`` with its 1x1 convolutions done once, before ROIAlign.

    Both are linear, one over channels and the other over positions, so they commute. The map has
    far fewer positions than a thousand regions have bins, and only the bins that the stride of a
    convolution keeps are pooled.
    """

    def moved(layer: Conv2d) -> Tensor:
        pooled = pooler([F.conv2d(feature, layer.weight)], rois, every=layer.stride[0])
        if layer.bias is not None:
            pooled = pooled + layer.bias[:, None, None]
        return layer.finish(pooled)

    assert block.shortcut is not None  # res5 doubles the channels
    out = block.conv3(block.conv2(moved(block.conv1)))
    return F.relu_(out + moved(block.shortcut))


def has_batch_norm(module: nn.Module | None) -> bool:
    """Whether a module in training normalises over its rows, so that none may be made up."""
    return module is not None and any(isinstance(m, nn.BatchNorm2d) for m in module.modules())


def mask_loss(
    head: MaskHead, pooled: Tensor, regions: Regions, real: Tensor, truth: GroundTruth
) -> Tensor:
    """Mean binary cross-entropy over every pixel of every region's mask (He et al. 2017, 3).

    ``pooled`` (P, channels, S, S) are the features of ``regions``, of which those that are ``real``
    (P,) hold an object.
    """
    if len(pooled) == 0:
        # every parameter must take part in the step, also where nothing is to learn
        return sum((p.sum() for p in head.parameters()), pooled.sum()) * 0.0
    logits = head.select(pooled, regions.classes.masked_fill(~real, 0))
    inside = truth.masks_of(regions.image, regions.matched, regions.boxes, logits.shape[-1])
    loss = F.binary_cross_entropy_with_logits(logits, inside.to(logits.dtype), reduction="none")
    if is_recording():
        note_mask_errors(logits[real], inside[real])
    if not is_fixed(loss):
        return loss.mean()
    loss = torch.where(real, loss.mean(dim=(1, 2)), 0.0)
    return loss.sum() / real.sum().clamp(min=1)


def note_mask_errors(logits: Tensor, truth: Tensor) -> None:
    """Shares of mask pixels that are right, of outside ones taken for inside, and the reverse."""
    wrong = (logits > 0) != truth
    inside = int(truth.sum())
    note("mask_rcnn/accuracy", 1 - wrong.float().mean())
    note("mask_rcnn/false_positive", int((wrong & ~truth).sum()) / max(truth.numel() - inside, 1))
    note("mask_rcnn/false_negative", int((wrong & truth).sum()) / max(inside, 1))
