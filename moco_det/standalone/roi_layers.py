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
from torchvision.ops import roi_align

from moco_det.foundation.precision import at_least_float32
from moco_det.resnet.layers import Conv2d, msra_fill, xavier_fill
from moco_det.standalone.boxes import BoxCoder, area, clip, smooth_l1_sum
from moco_det.standalone.fixed_size import (
    constant,
    has_kernels,
    is_fixed,
    nms,
    take,
)
from moco_det.standalone.recording import is_recording, note
from moco_det.standalone.roi_align import Axis, Part, axes_of, pool_parts
from moco_det.standalone.rpn import Proposals


@dataclass
class Regions:
    """Sampled regions of all images with what they should become.

    image (P,), boxes (P, 4), classes (P,) in 0..C, ground_truth (P, 4) where the class is
    foreground, and matched (P,), the index of the ground truth in the image's targets. Where
    sizes are fixed, classes are -1 where there is no region, and ``shape`` says how many rows an
    image has and which first few of them alone may be foreground.
    """

    image: Tensor
    boxes: Tensor
    classes: Tensor
    ground_truth: Tensor
    matched: Tensor
    shape: tuple[int, int] | None = None

    @property
    def rois(self) -> Tensor:
        """(P, 5): image, xyxy."""
        return rois_of(self.image, self.boxes)

    def select(self, chosen: Tensor) -> Regions:
        """The regions that a mask (P,) or an index picks."""
        return Regions(
            self.image[chosen],
            self.boxes[chosen],
            self.classes[chosen],
            self.ground_truth[chosen],
            self.matched[chosen],
        )

    def foreground(self, num_classes: int, *, exact: bool = False) -> tuple[Tensor, Tensor | None]:
        """Rows (F,) that hold an object; or, where sizes are fixed, may hold one, and which do.

        With ``exact`` they do, at the price of waiting for the device.
        """
        holds = (self.classes >= 0) & (self.classes < num_classes)
        if self.shape is None or exact:
            return holds.nonzero(as_tuple=True)[0], None
        size, most = self.shape
        starts = torch.arange(0, len(holds), size, device=holds.device)
        rows = (starts[:, None] + torch.arange(most, device=holds.device)).flatten()
        return rows, holds[rows]


def rois_of(image: Tensor, boxes: Tensor) -> Tensor:
    """Images (P,) and boxes (P, 4) as one tensor (P, 5): image, xyxy."""
    return torch.cat([image[:, None].to(boxes.dtype), boxes], dim=1)


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

    def forward(self, features: Sequence[Tensor], rois: Tensor, *, every: int = 1) -> Tensor:
        """L maps (N, channels, H, W) and rois (P, 5: image, xyxy) to (P, channels, size, size).

        With ``every`` each of so many bins alone, in both directions.
        """
        levels = self.assign_levels(rois[:, 1:])
        if has_kernels(rois):
            from moco_det.standalone import kernels  # needs triton

            return kernels.roi_align(
                features,
                rois,
                levels,
                strides=self.strides,
                bins=self.output_size,
                sampling_ratio=self.sampling_ratio,
                aligned=self.aligned,
                every=every,
            )
        if is_fixed(rois):
            return self.pool(features, rois, levels)[:, :, ::every, ::every]
        parts = []
        for level, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            rows = (levels == level).nonzero(as_tuple=True)[0]
            image, y, x = self.axes(feature, rois[rows], stride)
            parts.append(Part(rows, image, y.every(every), x.every(every)))
        return pool_parts(features, parts)

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

    def pool(self, features: Sequence[Tensor], rois: Tensor, levels: Tensor) -> Tensor:
        """The same by torchvision, in float32 at least.

        torchvision takes map and rois in one format, and in 8 or 11 bits a box of a large image
        lies pixels away from where it was. A region of another level is moved off the map, where
        it costs and adds nothing: that needs no sizes of selections.
        """
        pooled: Tensor | None = None
        nowhere = constant([0.0, -1e4, -1e4, -1e4, -1e4], rois)
        for level, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            wide = at_least_float32(feature)
            own = torch.where((levels == level)[:, None], rois, nowhere).to(wide.dtype)
            size = (self.output_size, self.output_size)
            part = roi_align(wide, own, size, 1.0 / stride, self.sampling_ratio, self.aligned)
            pooled = part if pooled is None else pooled + part
        assert pooled is not None
        return pooled.to(features[0].dtype)

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


# Only boxes with higher scores decide whether one is kept: of many candidates an image, as low
# thresholds leave them, the best are looked at first, and often suffice.
LOOKED_AT_FIRST = 4096


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

    def losses(self, scores: Tensor, deltas: Tensor, regions: Regions) -> dict[str, Tensor]:
        """Cross-entropy over all regions and smooth L1 over foreground, both divided by P."""
        classes = regions.classes
        count: Tensor | int = max(len(classes), 1)
        if regions.shape is not None:
            count = (classes >= 0).sum().clamp(min=1)
        rows, real = regions.foreground(self.num_classes)
        note_accuracy(scores, classes)
        chosen = deltas[rows]
        if deltas.shape[1] != 4:
            own = classes[rows].clamp(0, self.num_classes - 1)
            chosen = chosen.reshape(-1, self.num_classes, 4)
            chosen = chosen[torch.arange(len(rows), device=rows.device), own]
        goal = self.coder.encode(regions.boxes[rows], regions.ground_truth[rows])
        if real is not None:  # where there is no object, no difference
            goal = torch.where(real[:, None], goal, chosen.detach())
        box = smooth_l1_sum(chosen, goal, self.smooth_l1_beta) / count
        entropy = F.cross_entropy(scores, classes, ignore_index=-1, reduction="sum") / count
        return {"loss_cls": entropy, "loss_box_reg": box * self.box_loss_weight}

    def detect(
        self,
        scores: Tensor,
        deltas: Tensor,
        proposals: Proposals,
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Boxes above the score threshold, without duplicates of the same class.

        Scores (N, P, C + 1) and deltas (N, P, 4 or 4 C) are those of proposals of N images.
        """
        n, p, columns = deltas.shape
        per_class = columns // 4
        boxes = self.coder.decode(deltas.flatten(0, 1), proposals.boxes.flatten(0, 1))
        boxes = boxes.view(n, p, per_class, 4)
        probabilities = scores.softmax(dim=-1)
        sound = torch.isfinite(boxes).flatten(2).all(2) & torch.isfinite(probabilities).all(2)
        sound = (sound & proposals.real)[..., None]
        probabilities = probabilities[..., :-1].masked_fill(~sound, -1.0)
        probabilities = probabilities.flatten(1)  # N, P * C
        wanted = (probabilities > self.score_threshold).sum(dim=1)
        # for how many a batch needs space has to be known: the device is waited for
        most = int(wanted.max())
        limit = self.detections_per_image if self.detections_per_image >= 0 else most
        looked = LOOKED_AT_FIRST
        while True:
            confidence, index = probabilities.topk(min(looked, most), dim=1)
            region, class_ = index // self.num_classes, index % self.num_classes
            box = take(boxes.flatten(1, 2), region * per_class + (class_ if per_class > 1 else 0))
            box = clip(box, image_sizes)
            keep = nms(box, class_, confidence > self.score_threshold, self.nms_threshold, limit)
            if looked >= most or bool(((keep.sum(dim=1) >= limit) | (wanted <= looked)).all()):
                break
            looked *= 4
        best, index = confidence.masked_fill(~keep, -1).topk(min(limit, most), dim=1)
        counts = (best > self.score_threshold).sum(dim=1).tolist()
        kept = take(box, index), best, take(class_, index)
        return [Detections(*(k[i, :count] for k in kept)) for i, count in enumerate(counts)]


def note_accuracy(scores: Tensor, classes: Tensor) -> None:
    """How many regions are classified rightly, and how many objects are taken for background."""
    if not is_recording():
        return
    predicted, background = scores.argmax(dim=1), scores.shape[1] - 1
    right = predicted == classes
    note("fast_rcnn/cls_accuracy", right[classes >= 0].float().mean())
    foreground = (classes >= 0) & (classes < background)
    if bool(foreground.any()):
        note("fast_rcnn/fg_cls_accuracy", right[foreground].float().mean())
        note("fast_rcnn/false_negative", (predicted[foreground] == background).float().mean())


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
