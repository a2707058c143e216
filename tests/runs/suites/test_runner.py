"""Running a matrix: continued, isolated, claimed, stopped."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from moco_det.foundation.errors import InputError
from moco_det.foundation.folders import shared
from moco_det.foundation.stopping import SIGNALS
from moco_det.results import append_row, read_rows
from moco_det.runs.suites.live import LiveTable, table_lines
from moco_det.runs.suites.processes import last_words
from moco_det.runs.suites.runner import MatrixOutcome, read_slots, run_matrix
from moco_det.runs.suites.slurm import write_job_array
from moco_det.runs.suites.state import read_state, seconds_left, time_left_line


def starts(folder: Path) -> list[str]:
    file = folder / "starts.txt"
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def test_a_finished_run_is_never_run_again(make_runs: Any, trainer: Any, tmp_path: Path) -> None:
    runs = make_runs("a", "b", seeds=2)
    first = run_matrix(runs[:3], tmp_path, train_command=trainer)
    second = run_matrix(runs, tmp_path, train_command=trainer)
    assert (len(first.finished), len(second.finished)) == (3, 1)
    assert [len(starts(run.folder(tmp_path))) for run in runs] == [1, 1, 1, 1]
    assert run_matrix(runs, tmp_path, train_command=trainer) == MatrixOutcome()


def test_a_failed_run_is_isolated_and_its_row_says_why(
    make_runs: Any, trainer: Any, tmp_path: Path
) -> None:
    runs = make_runs("broken", "crash", "silent", "fine")
    outcome = run_matrix(runs, tmp_path, train_command=trainer)
    assert outcome.finished == [runs[3].name]
    reasons = list(outcome.failed.values())
    assert reasons[0] == "MODEL.WEIGHTS is nowhere: make it first"
    assert reasons[1] == "killed by signal 6" and reasons[2] == "no row was written"
    rows = read_rows([tmp_path]).rows
    assert [row.data["status"] for row in rows] == ["failed", "failed", "failed", "finished"]
    assert rows[0].data["error"] == reasons[0] and rows[0].data["precision"] is None
    assert (rows[0].run_dir / "console.txt").is_file()


def test_a_failed_run_is_tried_again_next_time(
    make_runs: Any, trainer: Any, tmp_path: Path
) -> None:
    runs = make_runs("broken")
    run_matrix(runs, tmp_path, train_command=trainer)
    run_matrix(runs, tmp_path, train_command=trainer)
    assert len(starts(runs[0].folder(tmp_path))) == 2


def test_runs_share_the_gpus_and_see_only_their_own(
    make_runs: Any, trainer: Any, tmp_path: Path
) -> None:
    runs = make_runs("a", "b", "c")
    run_matrix(runs, tmp_path, train_command=trainer, slots=[("0", "1"), ("2", "3")])
    seen = {starts(run.folder(tmp_path))[0] for run in runs}
    assert seen <= {"0,1", "2,3"} and len(seen) == 2


def test_gpus_are_read_as_groups_or_refused() -> None:
    assert read_slots(None, 1, 1) == [()] and read_slots("0,1", 1, 1) == [("0",), ("1",)]
    assert read_slots("0,1,2,3", 2, 1) == [("0", "1"), ("2", "3")]
    assert read_slots(None, 1, 2) == [(), ()] and read_slots("0", 1, 2) == [("0",), ("0",)]
    for gpus, per_run in (("0,0", 1), ("0,1,2", 2), ("", 1)):
        with pytest.raises(InputError, match="--gpus"):
            read_slots(gpus, per_run, 1)


def test_a_retry_that_dies_silently_is_not_given_the_words_of_the_try_before(
    make_runs: Any, trainer: Any, tmp_path: Path
) -> None:
    (run,) = make_runs("crash")
    folder = run.folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "console.txt").write_text("error: the disk was full\n", encoding="utf-8")
    outcome = run_matrix([run], tmp_path, train_command=trainer)
    assert outcome.failed == {run.name: "killed by signal 6"}
    assert (folder / "console.txt").read_text(encoding="utf-8").startswith("error: the disk")


def test_the_report_is_made_while_the_next_run_is_going_and_after_the_last(
    make_runs: Any, trainer: Any, tmp_path: Path
) -> None:
    runs = make_runs("a", "b")
    claimed: list[int] = []

    def on_row() -> None:
        claimed.append(sum((run.folder(tmp_path) / ".claim").exists() for run in runs))

    run_matrix(runs, tmp_path, train_command=trainer, on_row=on_row)
    assert claimed == [2, 2]


def test_half_written_files_go_when_nobody_else_writes_into_the_folder(
    make_runs: Any, trainer: Any, tmp_path: Path
) -> None:
    left = [tmp_path / name for name in (".report.html.1.partial", "configs/.a.yaml.1.partial")]
    for file in left:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    with shared(tmp_path):
        left[0].touch()
        run_matrix(make_runs("a"), tmp_path, train_command=trainer)
        assert left[0].exists()
    run_matrix([], tmp_path, train_command=trainer)
    assert not any(file.exists() for file in left)


def run_in_process(runs: list[Any], output: Path, trainer: list[str]) -> None:
    run_matrix(runs, output, train_command=trainer)


def waiting(folder: Path) -> int:
    for _ in range(600):
        if (folder / "waiting").exists():
            return int((folder / "waiting").read_text(encoding="utf-8") or 0)
        time.sleep(0.05)
    raise AssertionError("the run did not start")


@pytest.mark.parametrize("asked", SIGNALS)
def test_a_signal_is_passed_on_to_the_runs_which_save_and_leave_no_row(
    asked: signal.Signals, make_runs: Any, trainer: Any, tmp_path: Path
) -> None:
    runs = make_runs("slow", "fine")
    folder = runs[0].folder(tmp_path)

    def interrupt() -> None:
        waiting(folder)
        os.kill(os.getpid(), asked)

    thread = threading.Thread(target=interrupt)
    thread.start()
    outcome = run_matrix(runs, tmp_path, train_command=trainer)
    thread.join()
    assert outcome == MatrixOutcome(signal=asked)
    assert (folder / "model_0000001.pth").read_text(encoding="utf-8") == asked.name
    assert not (tmp_path / "results.jsonl").exists()


def test_a_run_that_was_stopped_alone_leaves_no_row_and_the_others_go_on(
    make_runs: Any, trainer: Any, tmp_path: Path, capsys: Any
) -> None:
    runs = make_runs("stopped", "fine", seeds=2)
    table = LiveTable(runs, tmp_path, at_once=1)
    outcome = run_matrix(runs, tmp_path, train_command=trainer, watch=table.watch)
    assert list(outcome.stopped.values()) == ["stopped by SIGTERM", "stopped by SIGKILL"]
    assert len(outcome.finished) == len(read_rows([tmp_path]).rows) == 2 and not outcome.failed
    assert f"stopped by SIGTERM  tiny {runs[0].name}" in capsys.readouterr().out


def test_a_run_of_another_process_is_left_to_it(
    make_runs: Any, trainer: Any, tmp_path: Path
) -> None:
    runs = make_runs("slow", "fine")
    fork = multiprocessing.get_context("fork")
    other = fork.Process(target=run_in_process, args=(runs[:1], tmp_path, trainer))
    other.start()
    child = waiting(runs[0].folder(tmp_path))
    # Killing the runner leaves its run alive, and the claim with it.
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    outcome = run_matrix(runs, tmp_path, train_command=trainer)
    os.kill(child, signal.SIGKILL)
    assert outcome.elsewhere == [runs[0].name] and outcome.finished == [runs[1].name]
    assert len(starts(runs[0].folder(tmp_path))) == 1


def test_cost_is_unknown_until_a_run_was_measured_then_scaled_by_images(make_runs: Any) -> None:
    runs = make_runs("a", seeds=3, settings=("one", "two"))
    state = read_state(Path("absent.jsonl"), runs)
    assert seconds_left(runs, state, at_once=1) == (None, [])
    line = time_left_line(runs, state, at_once=1)
    assert line == "6 of 6 runs left, 60 of 60 iterations; hours are known after the first run"


def test_cost_counts_what_is_left_at_the_measured_speed(
    make_runs: Any, trainer: Any, tmp_path: Path
) -> None:
    runs = make_runs("a", seeds=3, settings=("one", "two"))
    run_matrix(runs[:1], tmp_path, train_command=trainer)
    state = read_state(tmp_path / "results.jsonl", runs)
    # the trainer's row says 20 s for each of 6 runs, 5 are left
    assert seconds_left(runs, state, at_once=1) == (100.0, ["two"])
    assert seconds_left(runs, state, at_once=2) == (50.0, ["two"])
    line = time_left_line(runs, state, at_once=1)
    assert line.startswith("5 of 6 runs left, 50 of 60 iterations; about 1 min 40 s (scaled by")


def test_the_table_shows_means_and_one_mark_per_seed(
    make_runs: Any, trainer: Any, tmp_path: Path, capsys: Any
) -> None:
    runs = make_runs("broken", "fine", seeds=2)
    table = LiveTable(runs, tmp_path, at_once=1)
    outcome = run_matrix(runs, tmp_path, train_command=trainer, watch=table.watch)
    said = capsys.readouterr().out
    assert said.count("finished") == 2 and said.count("failed") == 2
    lines = table_lines(runs, read_state(tmp_path / "results.jsonl", runs), (), outcome)
    assert lines[1].split() == ["broken", "-", "n=0/2", "x", "x"]
    assert lines[2].split() == ["fine", "10.5", "±", "0.7", "n=2/2", "+", "+"]


def test_a_running_run_is_shown_with_the_share_of_its_iterations(
    make_runs: Any, trainer: Any, tmp_path: Path
) -> None:
    runs = make_runs("slow")
    folder = runs[0].folder(tmp_path)
    shown: list[str] = []

    def watch(running: Any, outcome: MatrixOutcome) -> None:
        state = read_state(tmp_path / "results.jsonl", runs)
        shown.append(table_lines(runs, state, running, outcome)[1].split()[-1])
        if len(shown) == 1:
            (folder / "metrics.jsonl").write_text('{"iteration": 4}\n', encoding="utf-8")
        elif waiting(folder):
            os.kill(os.getpid(), signal.SIGTERM)

    run_matrix(runs, tmp_path, train_command=trainer, watch=watch)
    assert shown == ["..%", "40%"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_table_larger_than_the_terminal_is_drawn_over_itself(
    make_runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("LINES", "6")
    runs = make_runs("a" * 40, *"bcdefgh", seeds=2)
    screen = Terminal()
    table = LiveTable(runs, tmp_path, at_once=1, stream=screen)
    table.draw((), MatrixOutcome())
    first = screen.getvalue().splitlines()
    # the cursor's own line is the sixth
    assert len(first) == 5 and max(map(len, first)) < 30
    assert first[0].startswith("(7 lines above")
    assert first[-1].startswith("16 of 16 runs left")
    table.draw((), MatrixOutcome())
    assert screen.getvalue().count("\x1b[5A\x1b[J") == 1


def test_the_mark_of_a_run_elsewhere_is_explained(make_runs: Any, tmp_path: Path) -> None:
    runs = make_runs("a")
    state = read_state(tmp_path / "absent.jsonl", runs)
    lines = table_lines(runs, state, (), MatrixOutcome(elsewhere=[runs[0].name]))
    assert lines[1].split()[-1] == "~" and lines[-1].startswith("  ~ is run by another process")
    assert "~" not in "".join(table_lines(runs, state, (), MatrixOutcome()))


def test_a_row_of_a_failure_that_was_mended_counts_as_finished(
    make_runs: Any, trainer: Any, tmp_path: Path
) -> None:
    runs = make_runs("fine")
    run_matrix(runs, tmp_path, train_command=trainer)
    row = dict(read_rows([tmp_path]).rows[0].data)
    append_row(tmp_path / "results.jsonl", {**row, "status": "failed", "error": "late"})
    state = read_state(tmp_path / "results.jsonl", runs)
    assert list(state.finished) == [runs[0].name] and not state.failed


def test_last_words_take_the_error_line_before_later_noise(tmp_path: Path) -> None:
    console = tmp_path / "console.txt"
    console.write_text("step\nerror: no images: name a folder\nbye\n", encoding="utf-8")
    assert last_words(console, 2) == "no images: name a folder"
    console.write_text("Traceback\nKeyError: 'x'\n", encoding="utf-8")
    assert last_words(console, 1) == "exit code 1: KeyError: 'x'"
    assert last_words(tmp_path / "absent", -9).startswith("killed by signal 9")


def test_a_job_array_has_one_task_per_run(make_runs: Any, tmp_path: Path) -> None:
    runs = make_runs("a", "b", seeds=2)
    script = write_job_array(
        [run.name for run in runs],
        tmp_path,
        command=["python", "-m", "x y"],
        gpus=2,
        directives=["--time=8:00:00"],
    ).read_text(encoding="utf-8")
    assert "--array=0-3" in script and "#SBATCH --time=8:00:00" in script
    assert "--gpus-per-node=2" in script and "python -m 'x y' --gpus " in script
    names = (tmp_path / "runs.txt").read_text(encoding="utf-8").splitlines()
    assert names == [run.name for run in runs]


@pytest.mark.parametrize(
    ("gpus", "seen", "told"),
    [(0, "5", []), (2, "4,5", ["--gpus", "4,5"]), (2, None, ["--gpus", "0,1"])],
)
def test_every_task_of_the_array_has_its_own_run_and_the_gpus_it_was_given(
    make_runs: Any, tmp_path: Path, gpus: int, seen: str | None, told: list[str]
) -> None:
    runs = make_runs("a", "b", seeds=2)
    output = tmp_path / "it's here"
    fake = tmp_path / "fake.py"
    # the second task fails, which must be its own affair
    fake.write_text("import json, sys\nprint(json.dumps(sys.argv[1:]))\n"
                    "sys.exit('b_seed0' in sys.argv[-1])\n", encoding="utf-8")  # fmt: skip
    script = write_job_array(
        [run.name for run in runs],
        output,
        command=[sys.executable, str(fake), "a b"],
        gpus=gpus,
        directives=[],
    )
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    if seen is not None:
        environment["CUDA_VISIBLE_DEVICES"] = seen
    for index, run in enumerate(runs):
        task = subprocess.run(
            ["bash", str(script)],
            env={**environment, "SLURM_ARRAY_TASK_ID": str(index)},
            capture_output=True,
            text=True,
        )
        assert task.returncode == (1 if index == 1 else 0), task.stderr
        assert json.loads(task.stdout) == ["a b", *told, "--no-report", "--only", run.name]
    outside = subprocess.run(["bash", str(script)], env=environment, capture_output=True)
    assert outside.returncode != 0 and not outside.stdout


# A task that waits for a signal the first time, and finishes the second time.
TASK = """
import pathlib, signal, sys
from moco_det.foundation.stopping import SIGNALS
seen = pathlib.Path("seen.txt")
if seen.exists():
    sys.exit(0)
signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
seen.write_text("waiting")
number = signal.sigwait(SIGNALS)
seen.write_text(signal.Signals(number).name)
sys.exit(128 + number)
"""


@pytest.mark.parametrize(
    ("asked", "requeued", "code"), [(signal.SIGUSR1, "7_0\n", 138), (signal.SIGTERM, "", 143)]
)
def test_a_task_whose_time_is_up_saves_and_is_requeued_and_a_preempted_one_saves(
    asked: signal.Signals,
    requeued: str,
    code: int,
    make_runs: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    scontrol, said = tmp_path / "bin" / "scontrol", tmp_path / "requeued.txt"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/bash\n[ "$1" = requeue ] && echo "$2" >> {said}\n')
    scontrol.chmod(0o755)
    said.touch()
    command = [sys.executable, "-c", TASK]
    script = write_job_array(
        [make_runs("a")[0].name], tmp_path, command=command, gpus=0, directives=[]
    )
    environment = {
        **os.environ,
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}",
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "0",
    }
    task = subprocess.Popen(["bash", str(script)], env=environment)
    seen = tmp_path / "seen.txt"
    while not seen.exists() or seen.read_text() != "waiting":
        assert task.poll() is None
        time.sleep(0.05)
    task.send_signal(asked)  # to the batch shell alone, as --signal=B: has it
    assert (task.wait(), seen.read_text(), said.read_text()) == (code, asked.name, requeued)
    assert subprocess.run(["bash", str(script)], env=environment).returncode == 0
    assert said.read_text() == requeued
