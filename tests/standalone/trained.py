"""A briefly trained detector, and how well the detections of two passes agree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from moco_det.data import load_dataset
from moco_det.data.scenes import ScenesPaths
from moco_det.foundation.precision import Precision
from moco_det.settings.config import load_config
from moco_det.standalone.boxes import pairwise_iou
from moco_det.standalone.build import build_detector, build_mapper, build_solver
from moco_det.standalone.detector import GeneralizedRCNN
from moco_det.standalone.roi_layers import ImageDetections
from tests.standalone.tiny import KEYS

REPO = Path(__file__).resolve().parents[2]
ONE_MAP = {"MODEL.ANCHOR_GENERATOR.SIZES": "[[8, 16, 32, 64]]"}
DETECTORS: dict[str, tuple[str, dict[str, str]]] = {
    "FPN masks": ("R18_FPN", {}),
    "FPN boxes": ("R18_FPN", {"MODEL.MASK_ON": "False"}),
    "C4 masks": ("own_R18_C4", ONE_MAP),
    "DC5": ("own_R50_DC5", ONE_MAP),
}


def overrides_of(name: str, changes: dict[str, str] | None = None) -> tuple[Path, list[str]]:
    """Config file and KEY VALUE ... of a tiny detector."""
    file, keys = DETECTORS[name]
    pairs = {**KEYS, **keys, **(changes or {})}
    words = [text for pair in pairs.items() for text in pair]
    return REPO / "configs" / "quick" / f"{file}.yaml", words


def briefly_trained(
    name: str, paths: ScenesPaths, *, device: str, steps: int, rate: str = "0.02"
) -> tuple[GeneralizedRCNN, list[torch.Tensor]]:
    """A detector after some steps of float32 on the training scenes, and the test images.

    It keeps all of its proposals and detections: where it is unsure, which of them are among the
    best few depends on rounding.
    """
    changes = {
        "SOLVER.BASE_LR": rate,
        "SOLVER.WARMUP_ITERS": "5",
        "MODEL.RPN.POST_NMS_TOPK_TEST": KEYS["MODEL.RPN.PRE_NMS_TOPK_TEST"],
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.001",
        "TEST.DETECTIONS_PER_IMAGE": "100",
    }
    cfg = load_config(*overrides_of(name, changes))
    torch.manual_seed(0)
    model = build_detector(cfg).to(device)
    solver = build_solver(cfg, model)
    torch.manual_seed(0)
    mapper = build_mapper(cfg, train=True)
    records = load_dataset(paths.train).records
    samples = [mapper(record, np.random.RandomState(i)) for i, record in enumerate(records)]
    model.train()
    for step in range(steps):
        chosen = [samples[(4 * step + i) % len(samples)] for i in range(4)]
        losses = model([s.image for s in chosen], [s.targets for s in chosen])
        assert isinstance(losses, dict)
        solver.set_iteration(step)
        solver.optimizer.zero_grad()
        sum(losses.values()).backward()
        solver.optimizer.step()
    tests = build_mapper(cfg, train=False)
    return model.eval(), [tests(record).image for record in load_dataset(paths.test).records]


@torch.no_grad()
def detections(
    model: GeneralizedRCNN, images: Sequence[torch.Tensor], precision: Precision
) -> list[ImageDetections]:
    """Of every image, on the CPU."""
    with precision.autocast():
        found = model(images)
    assert isinstance(found, list)
    return [
        ImageDetections(
            d.boxes.cpu(),
            d.scores.cpu(),
            d.classes.cpu(),
            d.masks if d.masks is None else d.masks.cpu(),
        )
        for d in found
    ]


def agreement(found: Sequence[ImageDetections], expected: Sequence[ImageDetections]) -> float:
    """Share of expected detections, weighted by score, that have a partner among the found.

    Those of less than half of the best score do not count: which of many they are is chance.

    A partner has the same class, a score within 0.05 and an overlap above 0.5, where NMS takes two
    boxes for one: which of them it keeps is chance where their scores differ by a rounding.
    """
    agreed = total = 0.0
    least = max(float(d.scores.max()) for d in expected if len(d.scores)) / 2
    for one, other in zip(found, expected, strict=True):
        near = pairwise_iou(other.boxes, one.boxes) > 0.5
        near &= other.classes[:, None] == one.classes
        sure = other.scores >= least
        near &= (other.scores[:, None] - one.scores).abs() < 0.05
        agreed += float(other.scores[sure & near.any(dim=1)].sum())
        total += float(other.scores[sure].sum())
    assert total > 0
    return agreed / total
