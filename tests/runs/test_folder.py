"""The folder of a run: taken by one run at a time, overwritten by none, resumed as begun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moco_det.foundation.errors import InputError
from moco_det.foundation.folders import claimed
from moco_det.foundation.launching import ProcessLayout, meeting_place, torchrun_process
from moco_det.runs.folder import (
    check_batch_stays,
    check_free,
    check_results,
    check_unchanged,
)
from moco_det.settings.config import dump
from tests.standalone.tiny import tiny_config


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with claimed(tmp_path / "out"):
        with (
            pytest.raises(InputError, match="another run is writing into .*out"),
            claimed(tmp_path / "out"),
        ):
            pass
        with claimed(tmp_path / "other"):
            pass
    with claimed(tmp_path / "out"):  # free again after the first has ended
        pass


def test_a_finished_run_is_kept_from_training_and_from_the_scores_of_other_weights(
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    check_free(output, resume=False, eval_only=False, weights="")
    output.mkdir()
    own = output / "model_final.pth"
    own.touch()
    with pytest.raises(InputError, match="out holds a finished run: choose another OUTPUT_DIR"):
        check_free(output, resume=False, eval_only=False, weights=str(own))
    with pytest.raises(InputError, match=r"predictions.json other/a.pth would overwrite"):
        check_free(output, resume=False, eval_only=True, weights="other/a.pth")
    check_free(output, resume=False, eval_only=True, weights=str(own))
    check_free(output, resume=True, eval_only=False, weights="")
    check_free(Path("x" * 300), resume=False, eval_only=False, weights="")


def test_a_run_goes_on_with_the_config_it_was_begun_with(tmp_path: Path) -> None:
    cfg = tiny_config()
    assert check_unchanged(tmp_path, cfg) == []
    (tmp_path / "config.yaml").write_text(dump(cfg))
    assert check_unchanged(tmp_path, cfg) == []
    free = {"DATALOADER.NUM_WORKERS": "1", "OUTPUT_DIR": "moved", "TEST.EVAL_PERIOD": "3"}
    assert check_unchanged(tmp_path, tiny_config(free)) == []
    longer = check_unchanged(tmp_path, tiny_config({"SOLVER.MAX_ITER": "9"}))
    assert longer == ["begun with SOLVER.MAX_ITER 4, resumed with 9"]
    for key, value in (("SOLVER.BASE_LR", "0.5"), ("MODEL.WEIGHTS", "a.pkl"), ("SEED", "4")):
        with pytest.raises(InputError, match=f"was begun with {key} .*, not {value}: resume it"):
            check_unchanged(tmp_path, tiny_config({key: value}))


def test_a_run_whose_batch_was_made_for_its_processes_goes_on_with_as_many(tmp_path: Path) -> None:
    cfg = tiny_config({"SOLVER.REFERENCE_WORLD_SIZE": "2"})
    said = "begun by 4 .* SOLVER.REFERENCE_WORLD_SIZE 2 made batch .*; 2 would .* resume it with 4"
    with pytest.raises(InputError, match=said):
        check_batch_stays(tmp_path, cfg, 4, 2)
    check_batch_stays(tmp_path, cfg, 4, 4)
    check_batch_stays(tmp_path, cfg, None, 4)  # an older run of detectron2 does not say
    check_batch_stays(tmp_path, tiny_config(), 4, 2)


def test_results_that_could_not_be_written_are_told_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_results(tmp_path / "new" / "rows.jsonl")
    assert not (tmp_path / "new" / "rows.jsonl").exists()
    with pytest.raises(InputError, match="cannot make the folder .*file"):
        check_results(tmp_path / "file" / "rows.jsonl")
    with pytest.raises(InputError, match="is a folder: name a file in it"):
        check_results(tmp_path)


@pytest.mark.parametrize(
    ("machines", "url", "message"),
    [
        (2, None, "--num-machines 2 needs --dist-url tcp://HOST:PORT"),
        (2, "auto", "--num-machines 2 needs --dist-url"),
        (2, "host:29500", "--dist-url host:29500 is no address"),
        (2, "tcp://host", "is no address"),
        (1, "tcp://host:port", "is no address"),
        (0, None, "--machine-rank below --num-machines"),
    ],
)
def test_processes_that_would_never_meet_are_refused(
    machines: int, url: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        meeting_place(ProcessLayout(1, machines, 0, url))


def test_one_machine_needs_no_address_and_several_meet_where_they_are_told() -> None:
    assert meeting_place(ProcessLayout(2, url="auto")) == ProcessLayout(2)
    several = ProcessLayout(2, 2, 1, "tcp://10.0.0.1:29500")
    assert meeting_place(several) == several


@pytest.fixture
def under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    place |= {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("under_torchrun")
def test_torchrun_says_who_a_process_is_and_where_all_meet() -> None:
    assert torchrun_process() == (5, 8, 1, 4)
    assert meeting_place(ProcessLayout()) == ProcessLayout()


@pytest.mark.usefixtures("under_torchrun")
@pytest.mark.parametrize(
    "changed",
    [{"processes": 8}, {"machines": 2}, {"machine_rank": 1}, {"url": "tcp://10.0.0.1:29500"}],
)
def test_torchrun_and_processes_of_the_tool_are_refused_together(changed: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="take out --num-gpus, .* or start without torchrun"):
        meeting_place(ProcessLayout(**changed))


@pytest.mark.usefixtures("under_torchrun")
def test_a_process_without_others_is_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as changed:
        changed.setenv("WORLD_SIZE", "1")
        assert torchrun_process() is None
    monkeypatch.delenv("WORLD_SIZE")
    assert torchrun_process() is None


@pytest.mark.usefixtures("under_torchrun")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "eight"),
        ("WORLD_SIZE", "0"),
        ("RANK", "8"),
        ("RANK", "-1"),
        ("LOCAL_RANK", "4"),
        ("LOCAL_WORLD_SIZE", "9"),
        ("MASTER_ADDR", ""),
        ("MASTER_PORT", "port"),
    ],
)
def test_a_place_that_torchrun_gives_no_process_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name}={value}.*by torchrun, or unset WORLD_SIZE"):
        torchrun_process()
    monkeypatch.delenv(name)
    if name not in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # as some clusters' pods have it
        with pytest.raises(InputError, match=f"{name}= .*by torchrun"):
            torchrun_process()


def test_a_stopped_run_is_gone_on_with_or_left_and_never_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    with pytest.raises(InputError, match="holds a run that was stopped: go on with --resume"):
        check_free(tmp_path, resume=False, eval_only=False, weights="")
    check_free(tmp_path, resume=True, eval_only=False, weights="")
    check_free(tmp_path, resume=False, eval_only=True, weights="a.pth")
