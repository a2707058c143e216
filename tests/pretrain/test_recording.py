from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from moco_det.foundation.errors import InputError
from pretrain.recording import MetricsFile, TensorBoard, open_writers


def test_a_continued_metrics_file_drops_what_comes_after_and_what_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 2, "loss": 1}\n{"iteration": 4, "loss": 2}\n{"iterat')
    file = MetricsFile(path, upto=2)
    file.write({"iteration": 3, "loss": 5.0})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"iteration": 2, "loss": 1}, {"iteration": 3, "loss": 5.0}]


def test_a_new_run_starts_an_empty_metrics_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 2}\n')
    MetricsFile(tmp_path / "metrics.jsonl", upto=0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_tensorboard_has_the_numbers_and_a_continued_run_replaces_what_it_repeats(
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoard(tmp_path, upto=0)
    for iteration, loss in [(1, 5.0), (2, 4.0), (3, 3.0)]:
        first.write({"iteration": iteration, "loss": loss, "warning": "words stay out"})
    first.close()
    second = TensorBoard(tmp_path, upto=1)
    second.write({"iteration": 2, "loss": 1.0})
    second.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["pretrain/loss"]
    assert [(e.step, e.value) for e in events.Scalars("pretrain/loss")] == [(1, 5.0), (2, 1.0)]


def test_without_tensorboard_the_log_says_so_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    caplog.set_level("INFO")
    writers = open_writers(tmp_path, upto=0, tensorboard=True, wandb="", config={})
    assert [type(writer) for writer in writers] == [MetricsFile]
    assert "pip install tensorboard" in caplog.text


def test_wandb_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="WANDB is mine and wandb is not installed"):
        open_writers(tmp_path, upto=0, tensorboard=False, wandb="mine", config={})


def test_wandb_gets_the_config_and_the_numbers_of_each_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Run:
        def log(self, numbers: dict[str, float], *, step: int) -> None:
            seen.append((step, numbers))

        def finish(self) -> None:
            seen.append("finished")

    def init(**named: Any) -> Run:
        seen.append((named["project"], named["id"], named["resume"], named["config"]))
        return Run()

    stub = types.ModuleType("wandb")
    stub.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stub)
    folder = tmp_path / "run7"
    folder.mkdir()
    writers = open_writers(folder, upto=0, tensorboard=False, wandb="mine", config={"SEED": 0})
    for writer in writers:
        writer.write({"iteration": 5, "loss": 2.0, "warning": "words"})
        writer.close()
    assert seen == [("mine", "run7", "allow", {"SEED": 0}), (5, {"loss": 2.0}), "finished"]
