"""A detector's convolutions alone, forward and backward: the time below which no step can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from moco_det.foundation.precision import DTYPES, Precision
from moco_det.standalone.build import build_detector
from moco_det.standalone.captured import Trunk


def convolutions_alone(
    cfg: CfgNode, images: Sequence[Tensor], precision: Precision
) -> Callable[[], None]:
    """Forward and backward of all that has weights, on regions that are given; a graph on a GPU.

    What a training step cannot beat: no matching, no sampling, no NMS, no pooling, no SGD.
    """
    model = build_detector(cfg).to(precision.device).train()
    batch = model.batch(images)[0]
    heads, count = model.roi_heads, len(images)

    def pooled(side: int, channels: int, share: float = 1.0) -> Tensor:
        regions = int(count * share * cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE)
        made = torch.randn(regions, channels, side, side, device=precision.device)
        return made.contiguous(memory_format=torch.channels_last).requires_grad_()

    def of_regions() -> list[Tensor]:
        if heads.res5 is not None:
            # what follows ROIAlign where the first 1x1 convolutions come before it
            first, *blocks = heads.res5
            x = F.relu_(first.conv3(first.conv2(inside)) + beside)
            for block in blocks:
                x = block(x)
            return list(heads.box_predictor(x.mean(dim=(2, 3))))
        assert heads.box_head is not None
        found = list(heads.box_predictor(heads.box_head(inside)))
        if beside is not None and heads.mask_head is not None:
            classes = torch.zeros(len(beside), dtype=torch.int64, device=beside.device)
            found.append(heads.mask_head.select(beside, classes))
        return found

    side = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
    if heads.res5 is not None:
        inside, beside = pooled(side, 512), pooled(side // 2, 2048)
    else:
        channels = model.backbone.channels[heads.in_features[0]]
        inside = pooled(side, channels)
        beside = pooled(14, channels, 0.25) if cfg.MODEL.MASK_ON else None
    rpn = model.proposal_generator
    trunk = Trunk(model.backbone, rpn.rpn_head, rpn.in_features)
    learned = [p for p in model.parameters() if p.requires_grad]

    def step() -> None:
        kind = DTYPES.get(precision.name, torch.float16)
        half = precision.name != "float32"
        with torch.autocast(precision.device, kind, enabled=half, cache_enabled=False):
            outputs = [*trunk(batch), *of_regions()]
        total = sum((o.float().mean() for o in outputs), torch.zeros((), device=batch.device))
        torch.autograd.grad(total, learned, allow_unused=True)

    if precision.device == "cpu":
        return step
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay(_kept: Callable[[], None] = step) -> None:
        # a graph reads the tensors of `step`, and does not keep them
        graph.replay()

    return replay
