"""Generalised R-CNN: images in, losses or detections out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moco_det.resnet.network import ResNet
from moco_det.standalone.backbones import FPN, DilatedC5
from moco_det.standalone.captured import CapturedTrunk
from moco_det.standalone.roi_heads import ROIHeads
from moco_det.standalone.roi_layers import ImageDetections
from moco_det.standalone.rpn import RPN
from moco_det.standalone.targets import GroundTruth, Targets
from moco_det.timm_backbones.simple_pyramid import SimplePyramid

# Each has `strides` and `channels` by feature name, and `size_divisibility`.
Backbone = ResNet | FPN | SimplePyramid | DilatedC5


class GeneralizedRCNN(nn.Module):
    """Backbone, proposals and heads, under detectron2's parameter names.

    Images are (3, H, W) tensors of 0..255 in the channel order of the config's INPUT.FORMAT;
    ``pixel_mean`` and ``pixel_std`` are in that order and on that scale.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: RPN,
        roi_heads: ROIHeads,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            column = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, column, persistent=False)
        self.memory_format = torch.channels_last
        self.captured: CapturedTrunk | None = None

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Targets] | None = None
    ) -> dict[str, Tensor] | list[ImageDetections]:
        """Losses by name in training (targets needed), detections per image otherwise."""
        batch, sizes = self.batch(images)
        outputs = None
        if self.captured is not None and self.training and torch.is_grad_enabled():
            features, outputs = self.captured(batch)
        else:
            features = self.backbone(batch)
        if self.training:
            assert targets is not None
            truth = GroundTruth.of(targets, self.pixel_mean.device)
            proposals, losses = self.proposal_generator(features, sizes, truth, outputs)
            return {**self.roi_heads.train_losses(features, proposals, truth), **losses}
        proposals, _ = self.proposal_generator(features, sizes)
        return self.roi_heads.detect(features, proposals, sizes)

    def capture(self) -> None:
        """From now on train with backbone and RPN head as CUDA graphs."""
        rpn = self.proposal_generator
        self.captured = CapturedTrunk(self.backbone, rpn.rpn_head, rpn.in_features)

    def batch(self, images: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Normalise, pad with zeros to one size that the backbone divides, and stack."""
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        step = self.backbone.size_divisibility
        height, width = (-(-max(sides) // step) * step for sides in zip(*sizes, strict=True))
        device = self.pixel_mean.device
        pixels = torch.zeros(
            len(images), 3, height, width, dtype=images[0].dtype, pin_memory=device.type == "cuda"
        )
        for slot, image, (h, w) in zip(pixels, images, sizes, strict=True):
            slot[:, :h, :w] = image
        batch = (pixels.to(device, non_blocking=True) - self.pixel_mean) / self.pixel_std
        for slot, (h, w) in zip(batch, sizes, strict=True):
            slot[:, h:] = 0
            slot[:, :, w:] = 0
        return batch.contiguous(memory_format=self.memory_format), sizes
