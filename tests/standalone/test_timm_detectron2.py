"""A detector over a network of timm in both engines: names, losses, gradients, optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("detectron2")
pytest.importorskip("timm")

import tests.weights.small_dinov3  # noqa: E402, F401
from moco_det.plugin.trainer import Trainer  # noqa: E402
from moco_det.standalone.build import build_detector, build_solver  # noqa: E402
from tests.golden.filling import OBJECTS, fill  # noqa: E402
from tests.golden.real import nms_takes_doubles, real_config, real_model  # noqa: E402, F401
from tests.golden.settings import EVERYTHING, MASKS, SMALL_FPN, Settings, our_config  # noqa: E402
from tests.standalone.test_steps_detectron2 import distance, step_of  # noqa: E402

pytestmark = pytest.mark.detectron2

KEYS = [
    *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.DROP_PATH", "0.2"),
    *("SOLVER.OPTIMIZER", "AdamW", "SOLVER.LAYER_DECAY", "0.9"),
]
CASES = {
    "test_convnext": [],
    "swin_tiny_patch4_window7_224": [],
    "regnety_002": ["MODEL.TIMM.NORM", "FrozenBN", "MODEL.WEIGHTS", "w"],
    "test_efficientnet": ["MODEL.BACKBONE.FREEZE_AT", "2", "MODEL.WEIGHTS", "w"],
    "test_vit": ["MODEL.TIMM.WINDOW", "3", "MODEL.FPN.NORM", "''"],
    "vit_micro_dinov3": ["MODEL.TIMM.WINDOW", "3", "MODEL.FPN.NORM", "''"],
}


@pytest.mark.usefixtures("nms_takes_doubles")
@pytest.mark.parametrize("name", CASES)
def test_names_losses_gradients_and_groups_are_the_same(name: str) -> None:
    keys = [*KEYS, "MODEL.TIMM.NAME", name, *CASES[name]]
    settings = Settings("RCNN_FPN", MASKS, SMALL_FPN, EVERYTHING, keys)
    ours, real = build_detector(our_config(settings)), real_model(settings)
    assert shapes(ours) == shapes(real)
    assert any(path.startswith("backbone.bottom_up.body.") for path in ours.state_dict())
    fill(ours)
    fill(real)
    exact = "swin" not in name  # in float32 it takes a sixth of the time
    dtype, limit = (torch.float64, 1e-6) if exact else (torch.float32, 1e-4)
    (found, mine), (wanted, theirs) = (step_of(model, OBJECTS, dtype) for model in (ours, real))
    assert found.keys() == wanted.keys() and len(found) == 5
    for loss, value in wanted.items():
        assert found[loss].item() == pytest.approx(value.item(), abs=limit, rel=limit), loss
    assert distance(mine, theirs) < (1e-9 if exact else 1e-2)
    assert trained(ours) == trained(real)
    optimizer = Trainer.build_optimizer(real_config(settings), real)
    own = build_solver(our_config(settings), ours).optimizer
    assert type(own) is type(optimizer) is torch.optim.AdamW
    assert groups_of(own, ours) == groups_of(optimizer, real)


def shapes(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]


def trained(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def groups_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[Any]:
    names = {id(p): name for name, p in model.named_parameters()}
    return [
        (
            group["lr"],
            group["weight_decay"],
            group["betas"],
            [names[id(p)] for p in group["params"]],
        )
        for group in optimizer.param_groups
    ]


def test_without_a_timm_network_and_with_sgd_the_optimizer_is_detectron2s_own() -> None:
    settings = Settings(
        "RCNN_FPN", ["MODEL.DEVICE", "meta", "SOLVER.CLIP_GRADIENTS.ENABLED", "True"]
    )
    with torch.device("meta"):
        model = real_model(settings)
    assert type(Trainer.build_optimizer(real_config(settings), model)).__name__ == (
        "SGDWithGradientClip"
    )
    cfg = real_config(settings.but("SOLVER.OPTIMIZER", "AdamW"))
    assert type(Trainer.build_optimizer(cfg, model)).__name__ == "AdamWWithGradientClip"
