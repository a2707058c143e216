"""A detector over a network of timm in both engines: names, losses, gradients, optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("detectron2")
pytest.importorskip("timm")

from moco_det.plugin.trainer import Trainer  # noqa: E402
from moco_det.standalone.build import build_detector, build_solver  # noqa: E402
from tests.golden.filling import OBJECTS, fill, images  # noqa: E402
from tests.golden.real import inputs_of, real_config, real_losses, real_model  # noqa: E402
from tests.golden.settings import EVERYTHING, MASKS, SMALL_FPN, Settings, our_config  # noqa: E402
from tests.standalone.targets import targets_of  # noqa: E402

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
}


@pytest.mark.parametrize("name", CASES)
def test_names_losses_gradients_and_groups_are_the_same(name: str) -> None:
    keys = [*KEYS, "MODEL.TIMM.NAME", name, *CASES[name]]
    settings = Settings("RCNN_FPN", MASKS, SMALL_FPN, EVERYTHING, keys)
    ours, real = build_detector(our_config(settings)), real_model(settings)
    assert shapes(ours) == shapes(real)
    assert any(path.startswith("backbone.bottom_up.body.") for path in ours.state_dict())
    fill(ours)
    fill(real)
    torch.manual_seed(5)  # for drop path
    found: Any = ours.train()(images(), targets_of(OBJECTS))
    torch.manual_seed(5)
    wanted = real_losses(real, inputs_of(images()))
    assert found.keys() == wanted.keys() and len(found) == 5
    for loss, value in wanted.items():
        torch.testing.assert_close(found[loss], value, rtol=1e-4, atol=1e-6, msg=loss)
    mine, theirs = gradients(ours, found), gradients(real, wanted)
    assert {n for n, g in mine.items() if g is None} == {n for n, g in theirs.items() if g is None}
    optimizer = Trainer.build_optimizer(real_config(settings), real)
    own = build_solver(our_config(settings), ours).optimizer
    assert type(own) is type(optimizer) is torch.optim.AdamW
    assert groups_of(own, ours) == groups_of(optimizer, real)


def shapes(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]


def gradients(model: nn.Module, losses: dict[str, Tensor]) -> dict[str, Tensor | None]:
    sum(losses.values(), torch.zeros(())).backward()
    return {name: p.grad for name, p in model.named_parameters()}


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
