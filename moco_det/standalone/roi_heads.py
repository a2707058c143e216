"""The second stage: proposals to losses or detections, over pooled maps (FPN, DC5) or res5 (C4).

Letters: P regions of all images, C foreground classes; class index C is background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from moco_det.resnet import Conv2d, make_norm
from moco_det.resnet.network import BottleneckBlock
from moco_det.standalone.boxes import Matcher, overlaps, subsample
from moco_det.standalone.masks import Mask, mask_targets
from moco_det.standalone.recording import is_recording, note
from moco_det.standalone.roi_align import pool
from moco_det.standalone.roi_layers import (
    BoxHead,
    BoxPredictor,
    Detections,
    MaskHead,
    Regions,
    ROIPooler,
)
from moco_det.standalone.rpn import Proposals, Targets, add_ground_truth


@dataclass(frozen=True)
class Sampler:
    """Draws the regions that a step trains on (Girshick 2015, section 2.3)."""

    num_classes: int
    matcher: Matcher
    batch_size_per_image: int
    positive_fraction: float
    append_ground_truth: bool

    @torch.no_grad()
    def draw(self, proposals: Sequence[Proposals], targets: Sequence[Targets]) -> list[Regions]:
        """Match each image's proposals with its objects and draw from both kinds."""
        if self.append_ground_truth:
            pairs = zip(proposals, targets, strict=True)
            proposals = [add_ground_truth(p, target.boxes) for p, target in pairs]
        boxes = pad_sequence([p.boxes for p in proposals], batch_first=True)  # N, P, 4
        counts = torch.tensor([len(p.boxes) for p in proposals], device=boxes.device)
        present = torch.arange(boxes.shape[1], device=boxes.device) < counts[:, None]
        matched, labels = self.matcher(overlaps([t.boxes for t in targets], boxes, present))
        regions = [
            self.draw_one(p.boxes, matched[i, : len(p.boxes)], labels[i, : len(p.boxes)], target)
            for i, (p, target) in enumerate(zip(proposals, targets, strict=True))
        ]
        if is_recording():
            background = sum(int((r.classes == self.num_classes).sum()) for r in regions)
            everything = sum(len(r.classes) for r in regions)
            note("roi_head/num_fg_samples", (everything - background) / len(regions))
            note("roi_head/num_bg_samples", background / len(regions))
        return regions

    def draw_one(self, boxes: Tensor, matched: Tensor, labels: Tensor, targets: Targets) -> Regions:
        if len(targets.classes):
            classes = targets.classes[matched]
            classes[labels == 0] = self.num_classes
            classes[labels == -1] = -1
        else:
            classes = torch.full_like(matched, self.num_classes)
        foreground, background = subsample(
            classes, self.batch_size_per_image, self.positive_fraction, self.num_classes
        )
        chosen = torch.cat([foreground, background])
        boxes = boxes[chosen]
        matched = matched[chosen]
        truth = targets.boxes[matched] if len(targets.boxes) else boxes
        return Regions(boxes, classes[chosen], truth, matched)

    def is_object(self, regions: Regions) -> Tensor:
        """Mask (P,) of the regions that hold an object."""
        return (regions.classes >= 0) & (regions.classes < self.num_classes)


class ROIHeads(nn.Module):
    """What the detector asks of a second stage."""

    has_masks: bool

    def train_losses(
        self,
        features: dict[str, Tensor],
        proposals: Sequence[Proposals],
        targets: Sequence[Targets],
    ) -> dict[str, Tensor]:
        """Losses of a random sample of the proposals."""
        raise NotImplementedError

    def detect(
        self,
        features: dict[str, Tensor],
        proposals: Sequence[Proposals],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Detections of each image, with masks where the head has them."""
        raise NotImplementedError


class StandardROIHeads(ROIHeads):
    """Box head and, where there is one, mask head, each over its own pooled features."""

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        sampler: Sampler,
        box_pooler: ROIPooler,
        box_head: BoxHead,
        box_predictor: BoxPredictor,
        mask_pooler: ROIPooler | None = None,
        mask_head: MaskHead | None = None,
    ) -> None:
        super().__init__()
        self.in_features = tuple(in_features)
        self.sampler = sampler
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_pooler = mask_pooler
        self.has_masks = mask_head is not None
        if mask_head is not None:
            self.mask_head = mask_head

    def train_losses(
        self,
        features: dict[str, Tensor],
        proposals: Sequence[Proposals],
        targets: Sequence[Targets],
    ) -> dict[str, Tensor]:
        maps = [features[name] for name in self.in_features]
        regions = self.sampler.draw(proposals, targets)
        pooled = self.box_pooler(maps, [r.boxes for r in regions])
        scores, deltas = self.box_predictor(self.box_head(pooled))
        losses = self.box_predictor.losses(scores, deltas, regions)
        if self.mask_pooler is not None:
            objects = [r.select(self.sampler.is_object(r)) for r in regions]
            pooled = self.mask_pooler(maps, [r.boxes for r in objects])
            losses["loss_mask"] = mask_loss(self.mask_head, pooled, objects, targets)
        return losses

    def detect(
        self,
        features: dict[str, Tensor],
        proposals: Sequence[Proposals],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        maps = [features[name] for name in self.in_features]
        boxes = [p.boxes for p in proposals]
        scores, deltas = self.box_predictor(self.box_head(self.box_pooler(maps, boxes)))
        found = self.box_predictor.detect(scores, deltas, boxes, image_sizes)
        if self.mask_pooler is not None:
            add_masks(self.mask_head, self.mask_pooler(maps, [d.boxes for d in found]), found)
        return found


class Res5ROIHeads(ROIHeads):
    """The second stage of a C4 detector: ROIAlign on res4, then the ResNet's own res5.

    Ren et al. 2015 as He et al. 2016 (appendix A) did it; box and mask head share what res5 makes
    of a region. With ``extra_norm`` a norm layer follows res5 (MoCo paper, appendix A.1: with all
    BN tuned, res5 in the head needs one to control the scale of what the head sees).
    """

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        sampler: Sampler,
        pooler: ROIPooler,
        res5: nn.Sequential,
        box_predictor: BoxPredictor,
        extra_norm: str | None = None,
        mask_head: MaskHead | None = None,
    ) -> None:
        super().__init__()
        self.in_features = tuple(in_features)
        self.sampler = sampler
        self.pooler = pooler
        self.res5 = res5
        if extra_norm is not None:
            layer = make_norm(extra_norm, box_predictor.cls_score.in_features)
            if layer is None:
                raise ValueError("Res5ROIHeadsExtraNorm needs MODEL.RESNETS.NORM to be a norm")
            res5.add_module("norm", layer)
        self.box_predictor = box_predictor
        self.has_masks = mask_head is not None
        if mask_head is not None:
            self.mask_head = mask_head

    def shared(self, features: dict[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """(P, channels of res5, S / 2, S / 2) of the regions of all images."""
        maps = [features[name] for name in self.in_features]
        first = self.res5[0]
        if maps[0].device.type != "cpu" or not isinstance(first, BottleneckBlock):
            return self.res5(self.pooler(maps, boxes))
        x = block_of_regions(first, self.pooler, maps[0], boxes)
        for layer in self.res5[1:]:
            x = layer(x)
        return x

    def train_losses(
        self,
        features: dict[str, Tensor],
        proposals: Sequence[Proposals],
        targets: Sequence[Targets],
    ) -> dict[str, Tensor]:
        regions = self.sampler.draw(proposals, targets)
        shared = self.shared(features, [r.boxes for r in regions])
        scores, deltas = self.box_predictor(shared.mean(dim=(2, 3)))
        losses = self.box_predictor.losses(scores, deltas, regions)
        if self.has_masks:
            chosen = [self.sampler.is_object(r) for r in regions]
            objects = [r.select(c) for r, c in zip(regions, chosen, strict=True)]
            pooled = shared[torch.cat(chosen)]
            losses["loss_mask"] = mask_loss(self.mask_head, pooled, objects, targets)
        return losses

    def detect(
        self,
        features: dict[str, Tensor],
        proposals: Sequence[Proposals],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        boxes = [p.boxes for p in proposals]
        scores, deltas = self.box_predictor(self.shared(features, boxes).mean(dim=(2, 3)))
        found = self.box_predictor.detect(scores, deltas, boxes, image_sizes)
        if self.has_masks:
            add_masks(self.mask_head, self.shared(features, [d.boxes for d in found]), found)
        return found


def block_of_regions(
    block: BottleneckBlock, pooler: ROIPooler, feature: Tensor, boxes: Sequence[Tensor]
) -> Tensor:
    """``block(pooler([feature], boxes))`` with its 1x1 convolutions done once, before ROIAlign.

    Both are linear, one over channels and the other over positions, so they commute. The map has
    far fewer positions than a thousand regions have bins, and only the bins that the stride of a
    convolution keeps are pooled.
    """
    image, y, x = pooler.axes(feature, pooler.rois(boxes), pooler.strides[0])

    def moved(layer: Conv2d) -> Tensor:
        step = layer.stride[0]
        pooled = pool(F.conv2d(feature, layer.weight), image, y.every(step), x.every(step))
        if layer.bias is not None:
            pooled = pooled + layer.bias[:, None, None]
        return layer.finish(pooled)

    assert block.shortcut is not None  # res5 doubles the channels
    out = block.conv3(block.conv2(moved(block.conv1)))
    return F.relu_(out + moved(block.shortcut))


def add_masks(head: MaskHead, pooled: Tensor, found: Sequence[Detections]) -> None:
    """Give each detection its class's mask, computed from its pooled features."""
    classes = torch.cat([d.classes for d in found])
    masks = head.select(pooled, classes).sigmoid().split([len(d.boxes) for d in found])
    for detections, mask in zip(found, masks, strict=True):
        detections.masks = mask


def mask_loss(
    head: MaskHead, pooled: Tensor, regions: Sequence[Regions], targets: Sequence[Targets]
) -> Tensor:
    """Mean binary cross-entropy over every pixel of every region's mask (He et al. 2017, 3).

    ``pooled`` (P, channels, S, S) are the features of ``regions``, which are foreground alone.
    """
    if len(pooled) == 0:
        # every parameter must take part in the step, also where nothing is to learn
        return sum((p.sum() for p in head.parameters()), pooled.sum()) * 0.0
    masks: list[Mask] = []
    for region, target in zip(regions, targets, strict=True):
        if len(region.boxes):
            if target.masks is None:
                raise ValueError("MODEL.MASK_ON needs masks in the training data")
            masks.extend(target.masks[i] for i in region.matched.tolist())
    logits = head.select(pooled, torch.cat([r.classes for r in regions]))
    truth = mask_targets(masks, torch.cat([r.boxes for r in regions]), logits.shape[-1])
    note_mask_errors(logits, truth)
    return F.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype))


def note_mask_errors(logits: Tensor, truth: Tensor) -> None:
    """Shares of mask pixels that are right, of outside ones taken for inside, and the reverse."""
    if not is_recording():
        return
    wrong = (logits > 0) != truth
    inside = max(int(truth.sum()), 1)
    outside = max(truth.numel() - int(truth.sum()), 1)
    note("mask_rcnn/accuracy", 1 - wrong.float().mean())
    note("mask_rcnn/false_positive", int((wrong & ~truth).sum()) / outside)
    note("mask_rcnn/false_negative", int((wrong & truth).sum()) / inside)
