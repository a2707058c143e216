"""Commands next to each other: shared cores, one bar of progress, one failure stops all."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moco_det.foundation.errors import InputError
from moco_det.foundation.launching import cores
from moco_det.runs.suites.processes import Job, run_side_by_side, with_threads

LOGS = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
with (folder / "metrics.jsonl").open("a") as file:
    for iteration in range(1, 6):
        file.write(json.dumps({"iteration": iteration}) + "\\n")
(folder / "threads.txt").write_text(os.environ["OMP_NUM_THREADS"])
"""
FAILS = "import sys; print('a line'); print('error: DATA.PATH is empty: name it'); sys.exit(2)"
WAITS = "import time; time.sleep(600)"


def job(folder: Path, name: str, code: str) -> Job:
    return Job(name, [sys.executable, "-c", code, str(folder / name)], folder / name, 5)


def test_all_jobs_run_with_their_share_of_the_cores_and_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    stream = io.StringIO()
    jobs = [job(tmp_path, name, LOGS) for name in ("a", "b", "c")]
    run_side_by_side(jobs, at_once=2, stream=stream)
    last = stream.getvalue().split("\r")[-1]
    assert "15/15" in last and "a 5/5, b 5/5, c 5/5" in last
    for one in jobs:
        assert (one.folder / "threads.txt").read_text() == str(max(1, cores() // 2))


def test_nothing_to_run_is_nothing_to_say() -> None:
    stream = io.StringIO()
    run_side_by_side([], at_once=2, stream=stream)
    assert stream.getvalue() == ""


def test_a_number_of_threads_that_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert with_threads(2)["OMP_NUM_THREADS"] == "7"


def test_the_failure_of_one_is_its_last_words_and_stops_the_others(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "waits", WAITS), job(tmp_path, "fails", FAILS)]
    with pytest.raises(InputError, match="^fails: DATA.PATH is empty: name it$"):
        run_side_by_side(jobs, at_once=2, stream=io.StringIO())
    assert (tmp_path / "fails" / "console.txt").read_text().startswith("a line")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("os.kill(os.getpid(), 9)", "by SIGKILL"),
        ("print('--resume'); sys.exit(130)", "by SIGINT"),
    ],
)
def test_one_that_is_stopped_goes_on_by_the_same_command(
    how: str, said: str, tmp_path: Path
) -> None:
    jobs = [job(tmp_path, "moco", f"import os, sys; {how}")]
    with pytest.raises(InputError, match=f"^moco was stopped {said}: type the same command again"):
        run_side_by_side(jobs, at_once=1, stream=io.StringIO())


def test_the_newest_iteration_is_read_past_a_line_that_is_half_written(tmp_path: Path) -> None:
    logging = Job("a", [], tmp_path, 5)
    assert logging.iteration() is None
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 3}\n{"iteration": 4}\n{"itera')
    assert logging.iteration() == 4


def test_a_terminated_caller_leaves_no_process_behind(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; "
        "from moco_det.runs.suites.processes import Job; "
        "from moco_det.runs.suites.processes import run_side_by_side; "
        f"waits = 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'; "
        f"folder = Path({str(tmp_path)!r}); "
        "job = Job('waits', [sys.executable, '-c', waits], folder / 'waits', 5); "
        "run_side_by_side([job], at_once=1)"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    console = tmp_path / "waits" / "console.txt"
    while not (console.is_file() and console.read_text().strip()):
        assert caller.poll() is None
        time.sleep(0.05)
    child = int(console.read_text().split()[0])
    caller.send_signal(signal.SIGTERM)
    _, said = caller.communicate(timeout=60)
    assert "type the same command again" in said
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
