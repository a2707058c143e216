"""Real detectron2 on the same configs, images and targets; skips where it cannot be imported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from tests.golden.filling import OBJECTS, polygon_of
from tests.golden.settings import CPU, Settings, base_tree
from tests.standalone.targets import Objects

pytest.importorskip("detectron2")

from detectron2.config import get_cfg  # noqa: E402
from detectron2.modeling.proposal_generator import proposal_utils  # noqa: E402
from detectron2.structures import Boxes, Instances, PolygonMasks  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402

from moco_det.plugin import add_moco_det_config  # noqa: E402
from moco_det.plugin.trainer import build_detector  # noqa: E402


def real_config(settings: Settings) -> CfgNode:
    cfg = get_cfg()
    add_moco_det_config(cfg)
    cfg.merge_from_other_cfg(CfgNode(base_tree(settings)))
    cfg.merge_from_list([*CPU, *settings.changes])
    return cfg


def real_model(settings: Settings) -> nn.Module:
    return build_detector(real_config(settings))


def inputs_of(
    pictures: list[Tensor], objects: Objects = OBJECTS, *, masks: bool = True
) -> list[dict[str, Any]]:
    """The same for detectron2."""
    made = []
    for image, rows in zip(pictures, objects, strict=True):
        instances = Instances(image.shape[-2:])
        instances.gt_boxes = Boxes(torch.tensor([o[:4] for o in rows]).reshape(-1, 4))
        instances.gt_classes = torch.tensor([int(o[4]) for o in rows], dtype=torch.int64)
        if masks:
            instances.gt_masks = PolygonMasks([[polygon_of(o)] for o in rows])
        made.append({"image": image, "instances": instances})
    return made


def real_losses(model: nn.Module, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
    with EventStorage():
        losses: dict[str, Tensor] = model.train()(inputs)
    return losses


def real_detections(model: nn.Module, pictures: list[Tensor]) -> list[Instances]:
    """In the pixels of the input."""
    with torch.no_grad():
        found: list[Instances] = model.eval().inference(  # type: ignore[operator]
            [{"image": image} for image in pictures], do_postprocess=False
        )
    return found


@pytest.fixture
def nms_takes_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """For detectron2 in float64: its boxes are float32 in NMS and their scores are not.

    torchvision refuses the mixture; the boxes that are kept are the same.
    """
    original = proposal_utils.batched_nms
    monkeypatch.setattr(
        proposal_utils,
        "batched_nms",
        lambda boxes, scores, *rest: original(boxes, scores.float(), *rest),
    )
