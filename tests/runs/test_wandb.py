"""A detector's run logs to Weights & Biases what it logs to metrics.jsonl, on either engine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from moco_det.foundation.errors import InputError
from moco_det.runs.run import train
from tests.fake_wandb import FakeWandb
from tests.standalone.tiny import CONFIG, overrides, scenes


@pytest.mark.parametrize(
    "engine", ["standalone", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
def test_each_line_of_metrics_jsonl_goes_to_the_project(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("detectron2" if engine == "detectron2" else "torch")
    wandb = FakeWandb.installed(monkeypatch)
    data, output = scenes(tmp_path), tmp_path / "run5"
    keys = {
        "DATASETS.TRAIN": repr((data.train,)),
        "DATASETS.TEST": repr((data.test,)),
        "OUTPUT_DIR": str(output),
        "SOLVER.MAX_ITER": "2",
        "SOLVER.STEPS": "()",
    }
    train(CONFIG, overrides({**keys, "WANDB": "mine"}), engine=engine)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    numbers = [{k: v for k, v in x.items() if k != "iteration" and v is not None} for x in lines]
    steps = [line["iteration"] for line in lines]
    assert wandb.logged == list(zip(steps, numbers, strict=True)) and steps == [0, 1, 1]
    assert "bbox/AP" in numbers[-1] and wandb.finished
    assert (wandb.begun["project"], wandb.begun["id"]) == ("mine", "run5")
    assert wandb.begun["config"]["SOLVER.MAX_ITER"] == 2


def test_without_wandb_the_key_is_refused_before_the_data_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    keys = {"OUTPUT_DIR": str(tmp_path / "run"), "WANDB": "mine"}
    with pytest.raises(InputError, match="WANDB is mine and wandb is not installed: pip install"):
        train(CONFIG, overrides(keys), engine="standalone")
    assert not (tmp_path / "run").exists()
