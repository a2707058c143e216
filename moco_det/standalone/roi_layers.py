"""Layers of the second stage: Fast R-CNN's box head and Mask R-CNN's mask head.

Sources: Girshick 2015 (box head, losses), He et al. 2017 (mask head).

Letters: N images, P regions of all images, C foreground classes; class index C is background.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import InitVar, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moco_det.foundation.precision import at_least_float32
from moco_det.resnet.layers import Conv2d, msra_fill, normal_fill, xavier_fill
from moco_det.standalone.boxes import BoxCoder, clip
from moco_det.standalone.fixed_size import nms, take
from moco_det.standalone.recording import is_recording, note
from moco_det.standalone.rpn import Proposals


class Regions(NamedTuple):
    """Sampled regions of all images with what they should become.

    image (P,), boxes (P, 4), classes (P,) in 0..C, ground_truth (P, 4) where the class is
    foreground, and matched (P,), the index of the ground truth in the image's targets. Where
    sizes are fixed, classes are -1 where there is no region, and ``shape`` says how many rows each
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
        image, boxes, classes, ground_truth, matched = (column[chosen] for column in self[:5])
        return Regions(image, boxes, classes, ground_truth, matched)

    def foreground(self, num_classes: int, *, exact: bool = False) -> tuple[Tensor, Tensor]:
        """Rows (F,) that hold an object or, where sizes are fixed, may hold one; and which do (F,).

        With ``exact`` they all do, at the price of waiting for the device.
        """
        holds = (self.classes >= 0) & (self.classes < num_classes)
        if self.shape is None or exact:
            rows = holds.nonzero(as_tuple=True)[0]
        else:
            size, most = self.shape
            starts = torch.arange(0, len(holds), size, device=holds.device)
            rows = (starts[:, None] + torch.arange(most, device=holds.device)).flatten()
        return rows, holds[rows]


def rois_of(image: Tensor, boxes: Tensor) -> Tensor:
    """Images (P,) and boxes (P, 4) as one tensor (P, 5): image, xyxy."""
    return torch.cat([image[:, None].to(boxes.dtype), boxes], dim=1)


@dataclass
class ImageDetections:
    """What was found in one image, best first: boxes (D, 4), scores (D,), classes (D,).

    ``masks`` (D, S, S) are probabilities inside the boxes.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor | None = None


def convolutions(
    name: str, channels: int, count: int, dim: int, norm: str
) -> Iterator[tuple[str, Conv2d]]:
    """3x3 convolutions with ReLU, called by ``name`` and a number from 1."""
    for k in range(count):
        layer = Conv2d(dim if k else channels, dim, 3, padding=1, norm=norm, relu=True)
        msra_fill(layer)
        yield f"{name}{k + 1}", layer


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
        for name, conv in convolutions("conv", in_channels, num_conv, conv_dim, norm):
            self.add_module(name, conv)
        self.add_module("flatten", nn.Flatten())
        size = (conv_dim if num_conv else in_channels) * resolution**2
        for k in range(num_fc):
            layer = nn.Linear(size, fc_dim)
            xavier_fill(layer)
            self.add_module(f"fc{k + 1}", layer)
            self.add_module(f"fc_relu{k + 1}", nn.ReLU(inplace=True))
            size = fc_dim
        self.out_features = size


# Only boxes with higher scores decide whether one is kept: of many candidates per image, as low
# thresholds leave them, the best are looked at first, and often suffice.
LOOKED_AT_FIRST = 4096


@dataclass(eq=False, repr=False, kw_only=True)
class BoxPredictor(nn.Module):
    """Class scores (C + 1) and box deltas (4, or 4 C) of each region."""

    in_features: InitVar[int]
    class_agnostic: InitVar[bool]
    num_classes: int
    coder: BoxCoder
    box_loss_weight: float
    score_threshold: float
    nms_threshold: float
    detections_per_image: int

    def __post_init__(self, in_features: int, class_agnostic: bool) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_features, self.num_classes + 1)
        self.bbox_pred = nn.Linear(in_features, 4 * (1 if class_agnostic else self.num_classes))
        normal_fill(self.cls_score, 0.01)
        normal_fill(self.bbox_pred, 0.001)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(P, in_features) to scores (P, C + 1) and deltas (P, 4 or 4 C), float32."""
        return at_least_float32(self.cls_score(x)), at_least_float32(self.bbox_pred(x))

    def losses(self, scores: Tensor, deltas: Tensor, regions: Regions) -> dict[str, Tensor]:
        """Cross-entropy over all regions and smooth L1 over foreground, both divided by P."""
        classes = regions.classes
        count = (classes >= 0).sum().clamp(min=1)
        rows, real = regions.foreground(self.num_classes)
        note_accuracy(scores, classes)
        deltas = deltas[rows].unflatten(1, (-1, 4))  # F, 1 or C, 4
        own = classes[rows].clamp(0, deltas.shape[1] - 1)
        chosen = deltas[torch.arange(len(rows), device=rows.device), own]
        box = self.coder.loss(chosen, regions.boxes[rows], regions.ground_truth[rows], real) / count
        entropy = F.cross_entropy(scores, classes, ignore_index=-1, reduction="sum") / count
        return {"loss_cls": entropy, "loss_box_reg": box * self.box_loss_weight}

    def detect(
        self,
        scores: Tensor,
        deltas: Tensor,
        proposals: Proposals,
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[ImageDetections]:
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
        probabilities = probabilities[..., :-1].masked_fill(~sound, -1.0).flatten(1)  # N, P * C
        wanted = (probabilities > self.score_threshold).sum(dim=1)
        # for how many a batch needs space has to be known: the device is waited for
        most, limit = int(wanted.max()), self.detections_per_image
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
        return [ImageDetections(*(k[i, :count] for k in kept)) for i, count in enumerate(counts)]


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
        for name, conv in convolutions("mask_fcn", in_channels, num_conv, conv_dim, norm):
            self.add_module(name, conv)
        deconv = nn.ConvTranspose2d(conv_dim if num_conv else in_channels, conv_dim, 2, stride=2)
        msra_fill(deconv)
        predictor = nn.Conv2d(conv_dim, num_masks, 1)
        normal_fill(predictor, 0.001)
        self.add_module("deconv", deconv)
        self.add_module("deconv_relu", nn.ReLU())
        self.add_module("predictor", predictor)

    def select(self, x: Tensor, classes: Tensor) -> Tensor:
        """Mask logits (P, S, S), float32, of the given class of each region."""
        *layers, deconv, _, predictor = self
        for layer in layers:
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
