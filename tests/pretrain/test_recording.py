from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from moco_det.foundation.errors import InputError
from pretrain.config import PretrainConfig, load_config
from pretrain.loop import Writer
from pretrain.train import open_writers, train
from tests.fake_wandb import FakeWandb


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    return FakeWandb.installed(monkeypatch)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def config(folder: Path, **keys: object) -> PretrainConfig:
    keys = {"SOLVER.MAX_ITER": 1, "TENSORBOARD": False, "OUTPUT_DIR": folder, **keys}
    return load_config(None, [str(word) for pair in keys.items() for word in pair])


def writers(folder: Path, stack: ExitStack, upto: int = 0, **keys: object) -> list[Writer]:
    return open_writers(config(folder, **keys), stack, upto=upto)


def test_a_continued_metrics_file_drops_what_comes_after_and_what_is_torn(
    tmp_path: Path, stack: ExitStack
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"iteration": 2, "loss": 1}\n{"iteration": 4, "loss": 2}\n'
        '{"iteration": "1"}\n[1]\n{"iterat'
    )
    (write,) = writers(tmp_path, stack, upto=2)
    write({"iteration": 3, "loss": 5.0})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"iteration": 2, "loss": 1}, {"iteration": 3, "loss": 5.0}]


def test_a_new_run_starts_an_empty_metrics_file(tmp_path: Path, stack: ExitStack) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 2}\n')
    writers(tmp_path, stack)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_tensorboard_has_the_numbers_and_a_continued_run_replaces_what_it_repeats(
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with ExitStack() as first:
        _, write = writers(tmp_path, first, TENSORBOARD=True)
        for iteration, loss in [(1, 5.0), (2, 4.0), (3, 3.0)]:
            write({"iteration": iteration, "loss": loss, "warning": "words stay out"})
    # Files are read in the order of their names, which begin with the second they are made in.
    (first_file,) = tmp_path.glob("events.*")
    first_file.rename(tmp_path / "events.out.tfevents.0000000001")
    with ExitStack() as second:
        _, write = writers(tmp_path, second, TENSORBOARD=True, upto=1)
        write({"iteration": 2, "loss": 1.0})
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["pretrain/loss"]
    assert [(e.step, e.value) for e in events.Scalars("pretrain/loss")] == [(1, 5.0), (2, 1.0)]


def test_without_tensorboard_the_log_says_so_and_the_run_goes_on(
    tmp_path: Path,
    stack: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    caplog.set_level("INFO")
    assert len(writers(tmp_path, stack, TENSORBOARD=True)) == 1
    assert "pip install tensorboard" in caplog.text


def test_wandb_is_named_where_it_is_missing_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="WANDB is mine and wandb is not installed: pip install"):
        train(config(tmp_path / "run", WANDB="mine"))
    assert not (tmp_path / "run").exists()


def test_wandb_gets_the_config_and_the_numbers_of_each_iteration(
    tmp_path: Path, wandb: FakeWandb
) -> None:
    folder = tmp_path / "run7"
    folder.mkdir()
    with ExitStack() as stack:
        for write in writers(folder, stack, WANDB="mine"):
            write({"iteration": 5, "loss": 2.0, "warning": "words"})
        assert not wandb.finished
    assert wandb.begun == {
        "project": "mine",
        "id": "run7",
        "dir": str(folder),
        "config": config(folder, WANDB="mine").plain(),
        "resume": "allow",
    }
    assert wandb.logged == [(5, {"loss": 2.0})]
    assert wandb.finished


def test_wandb_without_a_login_is_one_line(
    tmp_path: Path, stack: ExitStack, wandb: FakeWandb
) -> None:
    wandb.refuses = True
    with pytest.raises(InputError, match=r"begins no run \(no key\): run wandb login, or set W"):
        writers(tmp_path, stack, WANDB="mine")
