"""What a detector costs is counted by shapes alone, and the same whoever builds it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from moco_det.runs.cost import cost_line, detector_cost, images_per_second, multiply_adds
from moco_det.standalone.build import build_detector
from moco_det.timm_backbones.network import TimmBackbone
from tests.golden.settings import R18, R50, SMALL_C4, SMALL_FPN, Settings, our_config

FROZEN = ["MODEL.BACKBONE.FREEZE_AT", "5", "MODEL.WEIGHTS", "some.pkl"]
DETECTORS = {
    "FPN": Settings("RCNN_FPN", R18, SMALL_FPN),
    "C4": Settings("RCNN_C4", R50, SMALL_C4),
    "DC5": Settings("RCNN_DC5", R50, SMALL_C4),
}
SIZE = {"short": 60, "longest": 1333}


@pytest.fixture(params=DETECTORS)
def settings(request: pytest.FixtureRequest) -> Settings:
    return DETECTORS[request.param]


def by_fvcore(backbone: nn.Module, image: list[int]) -> int:
    logging.disable(logging.WARNING)  # its own, of what it does not count
    try:
        counted = FlopCountAnalysis(backbone.eval(), torch.zeros(1, 3, *image)).by_operator()
    finally:
        logging.disable(logging.NOTSET)
    return int(counted["conv"] + counted["linear"] + counted["matmul"])


def test_flops_are_those_of_fvcores_convolutions_and_products(settings: Settings) -> None:
    model = build_detector(our_config(settings))
    cost = detector_cost(model, **SIZE)
    assert cost["image"] == ([64, 96] if settings.base == "RCNN_FPN" else [60, 80])
    assert cost["backbone_flops"] == by_fvcore(model.backbone, cost["image"]) > 1e6
    assert cost["parameters"] == sum(p.numel() for p in model.parameters())


def test_attention_is_counted_as_by_fvcore() -> None:
    pytest.importorskip("timm")
    backbone = TimmBackbone("swin_tiny_patch4_window7_224")
    assert multiply_adds(backbone, [96, 128]) == by_fvcore(backbone, [96, 128]) > 1e6


@pytest.mark.detectron2
@pytest.mark.parametrize("changes", [[], FROZEN], ids=["trained", "frozen"])
def test_detectron2s_model_costs_what_ours_does(settings: Settings, changes: list[str]) -> None:
    pytest.importorskip("detectron2")
    from tests.golden.real import real_model

    settings = settings.but(*changes, "MODEL.DEVICE", "meta")
    with torch.device("meta"):
        models = real_model(settings), build_detector(our_config(settings))
    real, ours = (detector_cost(model, **SIZE) for model in models)
    assert real == ours and ours["backbone_flops"] > 1e6


def test_counting_changes_neither_the_model_nor_the_random_state() -> None:
    model = build_detector(our_config(DETECTORS["FPN"])).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters, state = list(model.parameters()), torch.get_rng_state()
    detector_cost(model, **SIZE)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_frozen_backbone_has_the_flops_of_a_trained_one_and_fewer_trained_parameters() -> None:
    whole = DETECTORS["DC5"]
    with torch.device("meta"):
        models = [build_detector(our_config(one)) for one in (whole.but(*FROZEN), whole)]
    costs = [detector_cost(model, **SIZE) for model in models]
    assert costs[0]["backbone_flops"] == costs[1]["backbone_flops"]
    assert costs[0]["trainable_parameters"] < costs[0]["parameters"] / 2
    assert costs[1]["trainable_parameters"] == costs[1]["parameters"]


def test_a_wide_image_is_as_long_as_the_config_allows() -> None:
    with torch.device("meta"):
        model = build_detector(our_config(DETECTORS["C4"]))
    assert detector_cost(model, short=60, longest=64)["image"] == [48, 64]


def test_a_backbone_that_cannot_be_counted_has_no_flops() -> None:
    class Picky(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x  # asks for a value

    assert multiply_adds(Picky(), [8, 8]) is None
    assert cost_line(9, 8, None, [8, 8]).endswith("the FLOPs of this backbone cannot be counted")


def test_speed_is_that_of_the_median_step(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    lines = [{"iteration": i, "time": t} for i, t in enumerate((9.0, 0.5, 0.4, 0.5))]
    log.write_text("".join(f"{json.dumps(x)}\n" for x in [*lines, {"iteration": 3, "AP": 1.0}]))
    assert images_per_second(log, 16) == 32.0
    log.write_text('{"iteration": 0, "bbox/AP": 1.0}\n')
    assert images_per_second(log, 16) is None
