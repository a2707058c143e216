"""Layers of the second stage: ROIAlign, Fast R-CNN's box head and Mask R-CNN's mask head.

Sources: Girshick 2015 (box head, losses), He et al. 2017 (ROIAlign, mask head).

Letters: N images, P regions of all images, C foreground classes; class index C is background.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, roi_align

from moco_det.resnet import Conv2d, msra_fill, xavier_fill
from moco_det.standalone.boxes import BoxCoder, area, clip, smooth_l1_sum
from moco_det.standalone.precision import at_least_float32
from moco_det.standalone.recording import is_recording, note
from moco_det.standalone.roi_align import Axis, Part, axes_of, pool_parts


@dataclass
class Regions:
    """Sampled regions of one image with what they should become.

    boxes (P, 4), classes (P,) in 0..C, ground_truth (P, 4) where the class is foreground, and
    matched (P,), the index of the ground truth in the image's targets.
    """

    boxes: Tensor
    classes: Tensor
    ground_truth: Tensor
    matched: Tensor

    def select(self, chosen: Tensor) -> Regions:
        """The regions that a mask (P,) or an index picks."""
        return Regions(
            self.boxes[chosen],
            self.classes[chosen],
            self.ground_truth[chosen],
            self.matched[chosen],
        )


@dataclass
class Detections:
    """What was found in one image, best first: boxes (D, 4), scores (D,), classes (D,).

    ``masks`` (D, S, S) are probabilities inside the boxes.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor | None = None


class ROIPooler(nn.Module):
    """ROIAlign from the pyramid level that fits each box's size (FPN, equation 1)."""

    def __init__(
        self, *, output_size: int, strides: Sequence[int], sampling_ratio: int, aligned: bool
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.strides = tuple(strides)
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """L maps (N, channels, H, W) and N boxes (P_i, 4) to (P, channels, size, size)."""
        rois = self.rois(boxes)
        levels = self.assign_levels(rois[:, 1:])
        if rois.device.type == "cpu":
            parts = []
            for level, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
                rows = (levels == level).nonzero(as_tuple=True)[0]
                parts.append(Part(rows, *self.axes(feature, rois[rows], stride)))
            return pool_parts(features, parts)
        if len(features) == 1:
            return self.pool(features[0], rois, self.strides[0])
        shape = (len(rois), features[0].shape[1], self.output_size, self.output_size)
        pooled = features[0].new_zeros(shape)
        for level, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            chosen = (levels == level).nonzero(as_tuple=True)[0]
            if chosen.numel():
                found = self.pool(feature, rois[chosen], stride)
                pooled = pooled.index_put((chosen,), found.to(pooled.dtype))
        return pooled

    @staticmethod
    def rois(boxes: Sequence[Tensor]) -> Tensor:
        """Boxes of N images as one tensor (P, 5): image, xyxy."""
        index = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
        return torch.cat([index, torch.cat(list(boxes))], dim=1)

    def axes(self, feature: Tensor, rois: Tensor, stride: int) -> tuple[Tensor, Axis, Axis]:
        """The image each region lies in, and its interpolation along y and x."""
        return axes_of(
            rois.to(torch.promote_types(feature.dtype, torch.float32)),
            (feature.shape[2], feature.shape[3]),
            output_size=self.output_size,
            scale=1.0 / stride,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
        )

    def pool(self, feature: Tensor, rois: Tensor, stride: int) -> Tensor:
        """What `pool` of roi_align computes, by torchvision, in float32 at least.

        torchvision takes map and rois in one format, and in 8 or 11 bits a box of a large image
        lies pixels away from where it was.
        """
        wide = at_least_float32(feature)
        pooled = roi_align(
            wide,
            rois.to(wide.dtype),
            (self.output_size, self.output_size),
            1.0 / stride,
            self.sampling_ratio,
            self.aligned,
        )
        return pooled.to(feature.dtype)

    def assign_levels(self, boxes: Tensor) -> Tensor:
        """Index (P,) of the map each box is pooled from: a 224-pixel box goes to stride 16."""
        lowest = int(math.log2(self.strides[0]))
        level = torch.floor(4 + torch.log2(area(boxes).sqrt() / 224 + 1e-8))
        highest = lowest + len(self.strides) - 1
        return level.clamp(lowest, highest).to(torch.int64) - lowest


class BoxHead(nn.Sequential):
    """3x3 convolutions, then fully connected layers, each with ReLU."""

    def __init__(
        self,
        *,
        in_channels: int,
        resolution: int,
        num_conv: int,
        conv_dim: int,
        num_fc: int,
        fc_dim: int,
        norm: str,
    ) -> None:
        super().__init__()
        channels = in_channels
        for k in range(num_conv):
            conv = Conv2d(channels, conv_dim, 3, padding=1, norm=norm, relu=True)
            msra_fill(conv)
            self.add_module(f"conv{k + 1}", conv)
            channels = conv_dim
        size = channels * resolution * resolution
        for k in range(num_fc):
            if k == 0:
                self.add_module("flatten", nn.Flatten())
            layer = nn.Linear(size, fc_dim)
            xavier_fill(layer)
            self.add_module(f"fc{k + 1}", layer)
            self.add_module(f"fc_relu{k + 1}", nn.ReLU(inplace=True))
            size = fc_dim
        self.out_features = size


class BoxPredictor(nn.Module):
    """Class scores (C + 1) and box deltas (4, or 4 C) of each region."""

    def __init__(
        self,
        *,
        in_features: int,
        num_classes: int,
        class_agnostic: bool,
        coder: BoxCoder,
        box_loss_weight: float,
        smooth_l1_beta: float,
        score_threshold: float,
        nms_threshold: float,
        detections_per_image: int,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_score = nn.Linear(in_features, num_classes + 1)
        self.bbox_pred = nn.Linear(in_features, 4 * (1 if class_agnostic else num_classes))
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)
        self.coder = coder
        self.box_loss_weight = box_loss_weight
        self.smooth_l1_beta = smooth_l1_beta
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(P, in_features) to scores (P, C + 1) and deltas (P, 4 or 4 C), float32."""
        x = x.flatten(1)
        return at_least_float32(self.cls_score(x)), at_least_float32(self.bbox_pred(x))

    def losses(
        self, scores: Tensor, deltas: Tensor, regions: Sequence[Regions]
    ) -> dict[str, Tensor]:
        """Cross-entropy over all regions and smooth L1 over foreground, both divided by P."""
        classes = torch.cat([r.classes for r in regions])
        boxes = torch.cat([r.boxes for r in regions])
        truth = torch.cat([r.ground_truth for r in regions])
        if classes.numel() == 0:
            return {"loss_cls": scores.sum() * 0.0, "loss_box_reg": deltas.sum() * 0.0}
        foreground = ((classes >= 0) & (classes < self.num_classes)).nonzero(as_tuple=True)[0]
        note_accuracy(scores, classes, foreground)
        chosen = deltas[foreground]
        if deltas.shape[1] != 4:
            rows = torch.arange(len(foreground), device=deltas.device)
            chosen = chosen.reshape(-1, self.num_classes, 4)[rows, classes[foreground]]
        goal = self.coder.encode(boxes[foreground], truth[foreground])
        box = smooth_l1_sum(chosen, goal, self.smooth_l1_beta) / classes.numel()
        return {
            "loss_cls": F.cross_entropy(scores, classes),
            "loss_box_reg": box * self.box_loss_weight,
        }

    def detect(
        self,
        scores: Tensor,
        deltas: Tensor,
        proposals: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Boxes above the score threshold, without duplicates of the same class."""
        counts = [len(p) for p in proposals]
        boxes = self.coder.decode(deltas, torch.cat(list(proposals))).split(counts)
        probabilities = scores.softmax(dim=-1).split(counts)
        return [
            self.detect_one(box, probability, size)
            for box, probability, size in zip(boxes, probabilities, image_sizes, strict=True)
        ]

    def detect_one(self, boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> Detections:
        finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
        boxes, scores = boxes[finite], scores[finite][:, :-1]
        per_class = boxes.shape[1] // 4
        boxes = clip(boxes.reshape(-1, 4), *size).reshape(-1, per_class, 4)
        region, class_ = (scores > self.score_threshold).nonzero(as_tuple=True)
        candidates = boxes[region, class_ if per_class > 1 else torch.zeros_like(class_)]
        confidence = scores[region, class_]
        keep = batched_nms(candidates, confidence.float(), class_, self.nms_threshold)
        if self.detections_per_image >= 0:
            keep = keep[: self.detections_per_image]
        return Detections(candidates[keep], confidence[keep], class_[keep])


def note_accuracy(scores: Tensor, classes: Tensor, foreground: Tensor) -> None:
    """How many regions are classified rightly, and how many objects are taken for background."""
    if not is_recording():
        return
    predicted = scores.argmax(dim=1)
    right = predicted == classes
    note("fast_rcnn/cls_accuracy", right.float().mean())
    if foreground.numel():
        note("fast_rcnn/fg_cls_accuracy", right[foreground].float().mean())
        missed = predicted[foreground] == scores.shape[1] - 1
        note("fast_rcnn/false_negative", missed.float().mean())


class MaskHead(nn.Sequential):
    """3x3 convolutions, a transposed convolution of stride 2, and a mask for each class."""

    def __init__(
        self, *, in_channels: int, num_conv: int, conv_dim: int, norm: str, num_masks: int
    ) -> None:
        super().__init__()
        channels = in_channels
        for k in range(num_conv):
            conv = Conv2d(channels, conv_dim, 3, padding=1, norm=norm, relu=True)
            msra_fill(conv)
            self.add_module(f"mask_fcn{k + 1}", conv)
            channels = conv_dim
        deconv = nn.ConvTranspose2d(channels, conv_dim, 2, stride=2)
        msra_fill(deconv)
        predictor = nn.Conv2d(conv_dim, num_masks, 1)
        nn.init.normal_(predictor.weight, std=0.001)
        assert predictor.bias is not None
        nn.init.zeros_(predictor.bias)
        self.add_module("deconv", deconv)
        self.add_module("deconv_relu", nn.ReLU())
        self.add_module("predictor", predictor)

    def select(self, x: Tensor, classes: Tensor) -> Tensor:
        """Mask logits (P, S, S), float32, of the given class of each region."""
        *convolutions, deconv, _, predictor = self
        for layer in convolutions:
            x = layer(x)
        # Stride and kernel of the transposed convolution are 2, so each cell makes four of its own:
        # a matrix product. And of all classes' masks only one is wanted.
        assert isinstance(deconv, nn.ConvTranspose2d) and isinstance(predictor, nn.Conv2d)
        assert deconv.bias is not None and predictor.bias is not None
        p, channels, height, width = x.shape
        weight = deconv.weight.permute(2, 3, 1, 0).reshape(-1, channels)  # 2 * 2 * hidden, channels
        cells = x.permute(0, 2, 3, 1).reshape(-1, channels)
        hidden = F.relu_(F.linear(cells, weight, deconv.bias.repeat(4)))
        index = classes if len(predictor.bias) > 1 else torch.zeros_like(classes)
        wanted = predictor.weight[index].flatten(1)[:, :, None]  # P, hidden, 1
        logits = torch.bmm(hidden.view(p, height * width * 4, deconv.out_channels), wanted)
        logits = at_least_float32(logits).view(p, height, width, 2, 2)
        logits = logits + predictor.bias[index][:, None, None, None, None]
        return logits.transpose(2, 3).reshape(p, 2 * height, 2 * width)
