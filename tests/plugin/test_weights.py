"""Loading states what stays random, and refuses everything else."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from moco_det.foundation.errors import InputError
from moco_det.weights.backbone import load_backbone
from moco_det.weights.loading import backbone_names, new_layers

pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

from detectron2.config import CfgNode  # noqa: E402

from moco_det.plugin import load_config, load_weights  # noqa: E402
from moco_det.plugin.trainer import build_detector  # noqa: E402
from moco_det.plugin.weights import check_resumable, run_state  # noqa: E402

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "quick" / "R18_FPN.yaml"
C4 = {
    "MODEL__BACKBONE__NAME": "build_resnet_backbone",
    "MODEL__RESNETS__OUT_FEATURES": "['res4']",
    "MODEL__RPN__IN_FEATURES": "['res4']",
    "MODEL__ROI_HEADS__NAME": "Res5ROIHeads",
    "MODEL__ROI_HEADS__IN_FEATURES": "['res4']",
    "MODEL__ROI_MASK_HEAD__NUM_CONV": "0",
    "MODEL__ANCHOR_GENERATOR__SIZES": "[[32, 64]]",
    "MODEL__RESNETS__DEPTH": "50",
    "MODEL__RESNETS__RES2_OUT_CHANNELS": "256",
}
Tiny = Callable[..., list[str]]


def built(tiny: Tiny, **changes: str) -> tuple[CfgNode, nn.Module]:
    cfg = load_config(CONFIG, tiny(**changes))
    return cfg, build_detector(cfg)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_backbone_file_fills_the_resnet_and_nothing_else(tiny: Tiny, backbone_file: Path) -> None:
    cfg, model = built(tiny, MODEL__WEIGHTS=str(backbone_file))
    before = snapshot(model)
    loaded = load_weights(cfg, model)
    given = load_backbone(backbone_file).model
    assert len(given) == 100
    for name, tensor in model.state_dict().items():
        if name.startswith("backbone.bottom_up.") and not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(
                tensor.numpy(), given[name.removeprefix("backbone.bottom_up.")]
            )
        else:
            assert torch.equal(tensor, before[name]), name
    assert loaded.line().startswith(
        f"100 of 100 backbone tensors loaded from {backbone_file}, "
        f"{len(loaded.new_layers)} new layers initialised: backbone.fpn_lateral2"
    )
    assert "roi_heads.box_predictor.cls_score" in loaded.new_layers


def test_without_weights_the_log_says_that_all_is_random(tiny: Tiny) -> None:
    cfg, model = built(tiny)
    assert load_weights(cfg, model).line().startswith("MODEL.WEIGHTS is empty: all 100 backbone")


def test_a_c4_detector_keeps_res5_in_its_heads(tiny: Tiny) -> None:
    _, model = built(tiny, **C4)
    names = backbone_names(model)
    assert len(names) == 265
    own = model.state_dict()
    for bare, place in {
        "stem.conv1.weight": "backbone.stem.conv1.weight",
        "res5.0.shortcut.weight": "roi_heads.res5.0.shortcut.weight",
    }.items():
        assert names[bare].data_ptr() == own[place].data_ptr()
    assert not any("res5" in name for name in new_layers(model))


def test_the_extra_norm_after_res5_is_a_new_layer(tiny: Tiny) -> None:
    _, model = built(tiny, **C4)
    model.roi_heads.res5.add_module("norm", nn.BatchNorm2d(4))
    assert len(backbone_names(model)) == 265
    assert "roi_heads.res5.norm" in new_layers(model)


def test_another_architecture_is_refused_and_leaves_the_model(
    tiny: Tiny, backbone_file: Path
) -> None:
    cfg, model = built(tiny, MODEL__WEIGHTS=str(backbone_file), MODEL__RESNETS__DEPTH="34")
    before = snapshot(model)
    with pytest.raises(InputError, match="does not fit this model: 80 tensors missing"):
        load_weights(cfg, model)
    assert unchanged(model, before)


def test_the_config_must_not_contradict_the_files_own_input(
    tiny: Tiny, backbone_file: Path
) -> None:
    cfg, model = built(tiny, MODEL__WEIGHTS=str(backbone_file), INPUT__FORMAT="BGR")
    with pytest.raises(InputError, match="FORMAT is BGR, but .* trained with INPUT.FORMAT 'RGB'"):
        load_weights(cfg, model)


def test_a_checkpoint_of_the_whole_detector_loads_whole(tiny: Tiny, tmp_path: Path) -> None:
    _, source = built(tiny)
    torch.save({"model": source.state_dict()}, tmp_path / "whole.pth")
    cfg, model = built(tiny, MODEL__WEIGHTS=str(tmp_path / "whole.pth"))
    assert "of the whole detector loaded" in load_weights(cfg, model).line()
    assert unchanged(model, source.state_dict())


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "infinite"])
def test_a_checkpoint_that_is_not_exactly_this_detector_is_refused(
    fault: str, tiny: Tiny, tmp_path: Path
) -> None:
    name = "roi_heads.box_predictor.cls_score.bias"
    _, model = built(tiny)
    state = snapshot(model)
    if fault == "missing":
        del state[name]
    elif fault == "unexpected":
        state["roi_heads.more.weight"] = torch.zeros(1)
    elif fault == "shape":
        state[name] = torch.zeros(3)
    else:
        state[name][0] = torch.inf
    torch.save({"model": state}, tmp_path / "bad.pth")
    cfg, model = built(tiny, MODEL__WEIGHTS=str(tmp_path / "bad.pth"))
    before = snapshot(model)
    with pytest.raises(InputError, match=r"roi_heads\.(box_predictor.cls_score.bias|more)"):
        load_weights(cfg, model)
    assert unchanged(model, before)


def test_a_pickle_that_would_run_something_is_not_run(tiny: Tiny, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "trap.pkl").write_bytes(pickle.dumps({"model": Trap(), "__author__": "x"}))
    cfg, model = built(tiny, MODEL__WEIGHTS=str(tmp_path / "trap.pkl"))
    with pytest.raises(InputError, match="trap.pkl"):
        load_weights(cfg, model)
    assert not (tmp_path / "sprung").exists()


def test_a_checkpoint_of_another_engine_is_not_trained_on(tiny: Tiny, tmp_path: Path) -> None:
    _, model = built(tiny)
    content = {"model": model.state_dict(), "iteration": 3}
    with pytest.raises(InputError, match="--engine standalone"):
        check_resumable(model, tmp_path / "model_final.pth", content)
    assert run_state(content) == {}
