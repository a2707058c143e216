"""What a detector costs: its parameters, the multiply-adds of its backbone, images per second."""

from __future__ import annotations

import copy
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from moco_det.report.training import read_log, series


def detector_cost(model: nn.Module, *, short: int, longest: int) -> dict[str, Any]:
    """The `cost` of a row but for its speed; model and random state stay as they are.

    `image` is the height and width of a 4:3 image as it is tested, padded as the backbone asks.
    `backbone_flops` are the multiply-adds of the convolutions and matrix products that the backbone
    with its pyramid does for it: what fvcore counts as FLOPs, without its norms and resizing. The
    heads, whose work depends on the proposals, are not counted. None where a backbone, a user's own
    in detectron2, does not run on torch's meta device.
    """
    parameters, backbone = list(model.parameters()), model.get_submodule("backbone")
    width = round(short * 4 / 3)
    height, width = (short, width) if width <= longest else (round(longest * 3 / 4), longest)
    step = max(1, int(getattr(backbone, "size_divisibility", 1)))  # 0 in detectron2: any
    image = [-(-side // step) * step for side in (height, width)]
    return {
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "backbone_flops": multiply_adds(backbone, image),
        "image": image,
    }


def cost_line(
    parameters: int, trainable_parameters: int, backbone_flops: int | None, image: list[int]
) -> str:
    """A cost as a line of the log."""
    said = f"{parameters:,} parameters, {trainable_parameters:,} of them trained"
    if backbone_flops is None:
        return f"{said}; the FLOPs of this backbone cannot be counted"
    height, width = image
    return f"{said}; backbone {backbone_flops / 1e9:.4g} GFLOPs for {height} x {width} pixels"


def multiply_adds(backbone: nn.Module, image: list[int]) -> int | None:
    """Those of one image, counted by shapes alone."""
    tensors = [*backbone.parameters(), *backbone.buffers()]
    # in place of its tensors the copy has empty ones, so no weights are copied
    shapes: dict[int, Any] = {id(t): _shape_of(t) for t in tensors}
    try:
        twin = copy.deepcopy(backbone, shapes).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            twin(torch.empty(1, 3, *image, device="meta"))
    except RuntimeError:
        return None
    return int(counter.get_total_flops()) // 2  # torch counts a multiplication and an addition


def _shape_of(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def images_per_second(log: Path, batch: int) -> float | None:
    """Training speed by the median step of a metrics.jsonl, None where no step was timed."""
    seconds = [value for _, value in series(read_log(log) or [], "time") if value > 0]
    return round(batch / median(seconds), 3) if seconds else None
