"""The second stage: proposals to losses or detections, over pooled maps (FPN, DC5) or res5 (C4).

Letters: P regions of all images, C foreground classes; class index C is background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moco_det.resnet.layers import Conv2d, make_norm
from moco_det.resnet.network import BottleneckBlock
from moco_det.standalone.boxes import Matcher, overlaps
from moco_det.standalone.fixed_size import is_fixed, subsample, take, to_device
from moco_det.standalone.recording import is_recording, note
from moco_det.standalone.roi_layers import (
    BoxHead,
    BoxPredictor,
    Detections,
    MaskHead,
    Regions,
    ROIPooler,
    rois_of,
)
from moco_det.standalone.rpn import Proposals, add_ground_truth
from moco_det.standalone.targets import GroundTruth


@dataclass(frozen=True)
class Sampler:
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
        image = torch.arange(n, device=index.device).repeat_interleave(size)
        regions = Regions(
            image,
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
    """What the detector asks of a second stage."""

    has_masks: bool

    def train_losses(
        self,
        features: dict[str, Tensor],
        proposals: Proposals,
        truth: GroundTruth,
    ) -> dict[str, Tensor]:
        """Losses of a random sample of the proposals."""
        raise NotImplementedError

    def detect(
        self,
        features: dict[str, Tensor],
        proposals: Proposals,
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
        proposals: Proposals,
        truth: GroundTruth,
    ) -> dict[str, Tensor]:
        maps = [features[name] for name in self.in_features]
        regions = self.sampler.draw(proposals, truth, exact=has_batch_norm(self.box_head))
        pooled = self.box_pooler(maps, regions.rois)
        scores, deltas = self.box_predictor(self.box_head(pooled))
        losses = self.box_predictor.losses(scores, deltas, regions)
        if self.mask_pooler is not None:
            rows, real = regions.foreground(
                self.sampler.num_classes, exact=has_batch_norm(self.mask_head)
            )
            objects = regions.select(rows)
            pooled = self.mask_pooler(maps, objects.rois)
            losses["loss_mask"] = mask_loss(self.mask_head, pooled, objects, real, truth)
        return losses

    def detect(
        self,
        features: dict[str, Tensor],
        proposals: Proposals,
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        maps = [features[name] for name in self.in_features]

        def outputs(rois: Tensor) -> tuple[Tensor, Tensor]:
            scores, deltas = self.box_predictor(self.box_head(self.box_pooler(maps, rois)))
            return scores, deltas

        scores, deltas = of_proposals(outputs, proposals)
        found = self.box_predictor.detect(scores, deltas, proposals, image_sizes)
        if self.mask_pooler is not None:
            add_masks(self.mask_head, self.mask_pooler(maps, rois_of_found(found)), found)
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

    def shared(self, features: dict[str, Tensor], rois: Tensor) -> Tensor:
        """(P, channels of res5, S / 2, S / 2) of rois (P, 5)."""
        maps = [features[name] for name in self.in_features]
        first = self.res5[0]
        if not isinstance(first, BottleneckBlock):
            return self.res5(self.pooler(maps, rois))
        x = block_of_regions(first, self.pooler, maps[0], rois)
        for layer in self.res5[1:]:
            x = layer(x)
        return x

    def train_losses(
        self,
        features: dict[str, Tensor],
        proposals: Proposals,
        truth: GroundTruth,
    ) -> dict[str, Tensor]:
        regions = self.sampler.draw(proposals, truth, exact=has_batch_norm(self.res5))
        shared = self.shared(features, regions.rois)
        scores, deltas = self.box_predictor(shared.mean(dim=(2, 3)))
        losses = self.box_predictor.losses(scores, deltas, regions)
        if self.has_masks:
            rows, real = regions.foreground(
                self.sampler.num_classes, exact=has_batch_norm(self.mask_head)
            )
            losses["loss_mask"] = mask_loss(
                self.mask_head, shared[rows], regions.select(rows), real, truth
            )
        return losses

    def detect(
        self,
        features: dict[str, Tensor],
        proposals: Proposals,
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        def outputs(rois: Tensor) -> tuple[Tensor, Tensor]:
            scores, deltas = self.box_predictor(self.shared(features, rois).mean(dim=(2, 3)))
            return scores, deltas

        scores, deltas = of_proposals(outputs, proposals)
        found = self.box_predictor.detect(scores, deltas, proposals, image_sizes)
        if self.has_masks:
            add_masks(self.mask_head, self.shared(features, rois_of_found(found)), found)
        return found


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


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a module in training normalises over its rows, so that none may be made up."""
    return any(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())


def of_proposals(
    outputs: Callable[[Tensor], tuple[Tensor, ...]], proposals: Proposals
) -> list[Tensor]:
    """What a function makes of rois (P, 5), for the proposals of each image: (N, P, ...).

    Where sizes are fixed also of those that are none, else zeros stand for these.
    """
    n, p = proposals.real.shape
    image = torch.arange(n, device=proposals.boxes.device)[:, None].expand(n, p)
    rois = rois_of(image.flatten(), proposals.boxes.flatten(0, 1))
    if is_fixed(rois):
        return [found.view(n, p, -1) for found in outputs(rois)]
    rows = proposals.real.flatten()
    spread = []
    for found in outputs(rois[rows]):
        spread.append(found.new_zeros(n * p, found.shape[1]))
        spread[-1][rows] = found
    return [one.view(n, p, -1) for one in spread]


def rois_of_found(found: Sequence[Detections]) -> Tensor:
    """Rois (P, 5) of the detections of all images."""
    counts = torch.tensor([len(d.boxes) for d in found])
    boxes = torch.cat([d.boxes for d in found])
    image = torch.arange(len(found)).repeat_interleave(counts)
    return rois_of(to_device(image, boxes.device), boxes)


def add_masks(head: MaskHead, pooled: Tensor, found: Sequence[Detections]) -> None:
    """Give each detection its class's mask, computed from its pooled features."""
    classes = torch.cat([d.classes for d in found])
    masks = head.select(pooled, classes).sigmoid().split([len(d.boxes) for d in found])
    for detections, mask in zip(found, masks, strict=True):
        detections.masks = mask


def mask_loss(
    head: MaskHead, pooled: Tensor, regions: Regions, real: Tensor | None, truth: GroundTruth
) -> Tensor:
    """Mean binary cross-entropy over every pixel of every region's mask (He et al. 2017, 3).

    ``pooled`` (P, channels, S, S) are the features of ``regions``, which are foreground alone, or,
    where ``real`` (P,) is given, those of them that it marks.
    """
    if len(pooled) == 0:
        # every parameter must take part in the step, also where nothing is to learn
        return sum((p.sum() for p in head.parameters()), pooled.sum()) * 0.0
    classes = regions.classes if real is None else regions.classes.masked_fill(~real, 0)
    logits = head.select(pooled, classes)
    inside = truth.masks_of(regions.image, regions.matched, regions.boxes, logits.shape[-1])
    loss = F.binary_cross_entropy_with_logits(logits, inside.to(logits.dtype), reduction="none")
    if real is None:
        note_mask_errors(logits, inside)
        return loss.mean()
    if is_recording():
        note_mask_errors(logits[real], inside[real])
    loss = torch.where(real, loss.mean(dim=(1, 2)), 0.0)
    return loss.sum() / real.sum().clamp(min=1)


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
