"""`moco-det benchmark`: what it refuses, shows and writes before any run."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch

from moco_det.foundation.errors import InputError
from moco_det.runs.suites.slurm import task_command
from moco_det.settings import zoo
from moco_det_tools.benchmark import main, parser

RANDOM_ONLY = ["--no-supervised", "--engine", "standalone"]


def suite(tmp_path: Path, extra: str = "") -> Path:
    path = tmp_path / "mine.yaml"
    quick = zoo.get_config_file("R18_FPN")
    path.write_text(
        f"seeds: 2\nsettings:\n  - name: tiny\n    config: {quick}\n    set:\n"
        "      DATASETS: {TRAIN: ['voc://a?split=b'], TEST: ['voc://a?split=c']}\n"
        f"      SOLVER: {{MAX_ITER: 7}}\n{extra}",
        encoding="utf-8",
    )
    return path


def test_a_dry_run_shows_matrix_cost_and_commands_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--suite", str(suite(tmp_path)), "-o", str(out), *RANDOM_ONLY, "--dry-run"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "2 runs on standalone" in said and "14 of 14 iterations" in said
    assert "hours are known after the first run" in said
    assert said.count("moco-det benchmark --suite") == 2
    assert not out.exists()


def test_a_command_of_a_dry_run_can_be_pasted_and_runs_that_run_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    words = ["--suite", str(suite(folder)), "-o", str(folder / "out"), *RANDOM_ONLY]
    assert main([*words, "--dry-run"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("moco-det ")]
    for seed, line in enumerate(lines):
        tool, benchmark, *pasted = shlex.split(line)
        assert (tool, benchmark) == ("moco-det", "benchmark") and pasted[: len(words)] == words
        assert main([*pasted, "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert "1 runs on standalone" in said and f"random_seed{seed}" in said
    assert len(lines) == 2


def test_a_dry_run_needs_no_weights_and_says_which_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--suite", str(suite(tmp_path)), "--engine", "standalone"]
    words += ["-o", str(tmp_path / "out"), "--weights", "moco=later.pkl"]
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "6 runs on standalone" in said and said.count("\nmoco-det benchmark") == 2
    for arm, file in (("supervised", "supervised.pkl"), ("moco", "later.pkl")):
        assert f"# {arm}: {file} does not exist: name it by --weights {arm}=FILE" in said
    with pytest.raises(InputError, match="no supervised arm to compare with"):
        main(words)
    with pytest.raises(InputError, match=r"later\.pkl does not exist"):
        main([*words, "--no-supervised"])


def test_a_job_array_calls_this_command_again_for_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--suite", str(suite(tmp_path)), "-o", str(out), *RANDOM_ONLY, "--slurm"]
    assert main([*words, "--sbatch=--time=1:00:00"]) == 0
    script = (out / "array.sbatch").read_text(encoding="utf-8")
    assert "--array=0-1" in script and "#SBATCH --time=1:00:00" in script
    assert "moco_det_tools.benchmark --suite" in script and " --no-slurm " in script
    first = (out / "runs.txt").read_text(encoding="utf-8").splitlines()[0]
    capsys.readouterr()
    assert main([*words[:-1], "--dry-run", "--only", first]) == 0
    assert "1 runs on standalone" in capsys.readouterr().out
    with pytest.raises(InputError, match="--only gone: no such run"):
        main([*words[:-1], "--dry-run", "--only", "gone"])


def test_a_key_that_the_engine_does_not_honour_is_refused_before_the_first_run(
    tmp_path: Path,
) -> None:
    path = suite(tmp_path, "      MODEL: {NO_SUCH: 1}\n")
    with pytest.raises(InputError, match=r"setting tiny.*MODEL\.NO_SUCH"):
        main(["--suite", str(path), "-o", str(tmp_path / "out"), *RANDOM_ONLY])
    assert not (tmp_path / "out").exists()


def test_an_unknown_suite_lists_those_there_are() -> None:
    with pytest.raises(InputError, match="--suite nothing: no such file, and no .* coco, q"):
        main(["--suite", "nothing"])


def test_a_task_is_told_what_the_batch_system_decides_and_not_what_it_decided_elsewhere() -> None:
    given = ["--suite", "quick", "--slurm", "--sbatch=--time=1", "--sbatch=-p x", "-o", "d"]
    task = parser().parse_args(task_command(given, engine="standalone"))
    assert (task.slurm, task.suite, str(task.output)) == (False, "quick", "d")
    assert task.engine == "standalone"
    # the GPUs' numbers are those of the machine that runs the task
    given += ["--gpus", "6,7", "--at-once", "3", "--gpus-per-run=2", "--engine=auto"]
    words = [*task_command(given, engine="standalone"), "--gpus", "0,1"]
    task = parser().parse_args(words)
    assert (task.gpus, task.at_once, task.gpus_per_run) == ("0,1", 1, 2)
    assert task.engine == "standalone"


def test_a_job_array_s_runs_are_the_same_on_a_machine_with_other_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--suite", str(suite(tmp_path)), "-o", str(tmp_path / "out"), *RANDOM_ONLY]
    for gpus in ([], ["--gpus", "6"]):
        names = []
        for cuda in (False, True):
            monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
            assert main([*words, *gpus, "--slurm"]) == 0
            names.append((tmp_path / "out" / "runs.txt").read_text(encoding="utf-8"))
            task = task_command([*words, *gpus], engine="standalone")
            task += ["--gpus", "0"] if gpus else []
            hides = "CUDA_VISIBLE_DEVICES= " in (tmp_path / "out" / "array.sbatch").read_text()
            assert hides != bool(gpus)
            for there in (False, not hides):
                monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
                assert main([*task, "--only", names[-1].split()[0], "--dry-run"]) == 0
        assert names[0] == names[1]
    assert "on the CPU; --gpus asks for GPUs" in capsys.readouterr().out


def test_an_option_s_beginning_is_no_option() -> None:
    with pytest.raises(InputError, match=r"unrecognized arguments: --slur; moco-det benchmark"):
        main(["--suite", "quick", "--slur"])


def test_a_count_out_of_all_bounds_is_refused_by_its_option() -> None:
    for option in ("--at-once", "--gpus-per-run"):
        for value, why in (("0", "below 1"), ("9" * 20, "above 1024")):
            with pytest.raises(InputError, match=f"argument {option}: {value} is {why}"):
                main(["--suite", "quick", option, value])


def test_a_suite_without_data_is_told_of_the_option(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="quick_R18_FPN names no data: give --data TRAIN TEST"):
        main(["--suite", "quick", "-o", str(tmp_path / "out"), *RANDOM_ONLY, "--dry-run"])
