"""A detector over a network of timm: trained by AdamW with drop path, stopped and resumed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.exc import UserError, UserErrorType

from moco_det.data.scenes import ScenesPaths
from moco_det.foundation.checkpoints import restore_optimizer, restoring
from moco_det.foundation.errors import InputError
from moco_det.settings.engine import RunOptions
from moco_det.standalone.build import build_detector, build_solver
from moco_det.standalone.engine import StandaloneEngine
from moco_det.standalone.export import export_program
from tests.standalone.test_run import final_state, lines_of, stop_before_step
from tests.standalone.tiny import on_scenes, run, tiny_config

KEYS = {
    "MODEL.BACKBONE.NAME": "build_timm_fpn_backbone",
    "MODEL.TIMM.NAME": "test_convnext",
    "MODEL.TIMM.DROP_PATH": "0.3",
    "MODEL.MASK_ON": "False",
    "SOLVER.OPTIMIZER": "AdamW",
    "SOLVER.LAYER_DECAY": "0.8",
    "SOLVER.CLIP_GRADIENTS.ENABLED": "True",
}
OPTIONS = RunOptions("own_convnext_FPN")


def test_adamw_and_drop_path_go_on_from_a_checkpoint_as_if_never_stopped(
    painted: ScenesPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(on_scenes(painted, whole, KEYS), OPTIONS)
    stop_before_step(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        run(on_scenes(painted, killed, KEYS), OPTIONS)
    monkeypatch.undo()
    torch.rand(17)  # another process starts with another state
    run(on_scenes(painted, killed, KEYS), RunOptions("own_convnext_FPN", resume=True))
    assert lines_of(killed) == lines_of(whole)
    one, two = final_state(whole), final_state(killed)
    assert [n for n, t in one["model"].items() if not torch.equal(t, two["model"][n])] == []
    moments, again = (state["optimizer"]["state"] for state in (one, two))
    assert len(moments) > 100
    for key, state in moments.items():
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"} and state["step"] == 4
        assert all(torch.equal(state[name], again[key][name]) for name in state)
    assert lines_of(whole)[0]["lr"] == pytest.approx(0.005 * 0.001)  # of the detector's own layers


def test_the_state_of_another_optimizer_or_of_other_shapes_is_not_taken() -> None:
    layer = torch.nn.Linear(2, 3)
    layer(torch.ones(1, 2)).sum().backward()
    sgd = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    adamw = torch.optim.AdamW(layer.parameters(), lr=0.1)
    sgd.step()
    adamw.step()
    saved = adamw.state_dict()
    restore_optimizer(adamw, saved)
    path = Path("model.pth")
    with pytest.raises(InputError, match="model.pth does not fit this run"), restoring(path):
        restore_optimizer(adamw, sgd.state_dict())
    saved["state"][0]["exp_avg"] = torch.zeros(())
    with pytest.raises(InputError, match=r"optimizer's exp_avg has shape \(\)"), restoring(path):
        restore_optimizer(adamw, saved)


def test_the_solver_is_what_its_keys_say() -> None:
    cfg = tiny_config({"SOLVER.OPTIMIZER": "AdamW", "SOLVER.MOMENTUM": "0.8"})
    with torch.device("meta"):
        optimizer = build_solver(cfg, build_detector(cfg)).optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.8, 0.999)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0001, 0.0}


def test_a_detector_over_a_resnet_is_built_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with torch.device("meta"):
        build_detector(tiny_config())
        with pytest.raises(InputError, match="a backbone of timm needs timm: pip install"):
            build_detector(tiny_config(KEYS))


def test_synchronised_norms_are_refused_where_they_cannot_be() -> None:
    cfg = tiny_config({**KEYS, "MODEL.TIMM.NORM": "SyncBN"})
    StandaloneEngine().check_processes(cfg, 1)
    with pytest.raises(InputError, match="MODEL.TIMM.NORM SyncBN is for GPUs: on a CPU use --num-"):
        StandaloneEngine().check_processes(cfg, 2)


def test_what_torch_export_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*arguments: Any, **options: Any) -> None:
        raise UserError(
            UserErrorType.CONSTRAINT_VIOLATION, "Constraints violated (width)! For more"
        )

    monkeypatch.setattr(torch.export, "export", refuses)
    with pytest.raises(InputError, match=r"this backbone \(Constraints violated \(width\)\): use"):
        export_program(build_detector(tiny_config()), torch.zeros(3, 96, 96), {})
