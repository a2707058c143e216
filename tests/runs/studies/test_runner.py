"""The pieces of a study run, stopped, failed and gone on with; what they say of the claims."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tqdm import tqdm

from moco_det.foundation.atomic import try_lock
from moco_det.foundation.errors import InputError
from moco_det.results.claims import Hypothesis, Quantity, read_claim
from moco_det.runs.studies import runner
from moco_det.runs.studies.flow import run_and_report
from moco_det.runs.studies.pieces import Matrix, Piece
from moco_det.runs.studies.runner import StudyOutcome, findings, left_of, logged, run_pieces
from moco_det.runs.studies.study import StudyEncoder, StudyPlan
from moco_det.runs.suites.processes import Slot

DONE = "from pathlib import Path; Path('{0}/done').write_text('')"
# until it is told to stop, then as a run does: a file that says so, and 128 + the signal
SLOW = """
import time
from pathlib import Path
from moco_det.foundation.stopping import asked, deferred
with deferred():
    Path('{0}/begun').write_text('')
    while not asked():
        time.sleep(0.01)
    Path('{0}/checkpoint_1.pth').write_text('')
    raise SystemExit(128 + asked())
"""
FAILS = "print('error: no such thing: name another'); raise SystemExit(2)"


def piece(folder: Path, name: str, script: str = DONE, needs: tuple[str, ...] = ()) -> Piece:
    own = folder / name
    words = (sys.executable, "-c", script.format(own))
    return Piece(name, name, own, 0, needs, file=own / "done", command=words)


def run(
    folder: Path, *pieces: Piece, slots: list[Slot] | None = None, budget: float | None = None
) -> StudyOutcome:
    return run_pieces(
        Matrix(pieces, {}), folder, slots or [()], budget=budget, lean=True, on_row=lambda: None
    )


def test_a_piece_waits_for_what_it_needs_and_others_go_before_it(tmp_path: Path) -> None:
    first = piece(tmp_path, "first")
    later = piece(
        tmp_path, "later", f"assert {str(tmp_path / 'first' / 'done')!r}; " + DONE, ("first",)
    )
    other = piece(tmp_path, "other")
    outcome = run(tmp_path, later, first, other, slots=[(), ()])
    assert sorted(outcome.finished) == ["first", "later", "other"]
    assert outcome.finished.index("first") < outcome.finished.index("later")
    assert run(tmp_path, later, first, other).finished == []  # nothing is run twice


def test_what_needs_a_failed_piece_is_left_out_and_the_rest_goes_on(tmp_path: Path) -> None:
    bad = piece(tmp_path, "bad", FAILS)
    after = piece(tmp_path, "after", needs=("bad",))
    last = piece(tmp_path, "last", needs=("bad", "after"))
    good = piece(tmp_path, "good")
    outcome = run(tmp_path, bad, after, last, good)
    assert outcome.failed == {"bad": "no such thing: name another"}
    assert set(outcome.stopped) == {"after", "last"} and outcome.finished == ["good"]
    assert [p.name for p in left_of(Matrix((bad, after, last, good), {}), tmp_path)] == [
        "bad", "after", "last",
    ]  # fmt: skip


def test_what_was_made_for_pieces_that_are_done_is_not_made_again(tmp_path: Path) -> None:
    encoder, weights = piece(tmp_path, "encoder"), piece(tmp_path, "weights", needs=("encoder",))
    one = piece(tmp_path, "one", needs=("weights",))
    two = piece(tmp_path, "two", needs=("encoder",))
    run(tmp_path, encoder, weights, one)
    for made in (encoder, weights):
        assert made.file is not None
        made.file.unlink()
    assert run(tmp_path, encoder, weights, one).finished == []
    assert run(tmp_path, encoder, weights, one, two).finished == ["encoder", "two"]
    # where the study reads its log, an encoder is wanted for itself
    assert encoder.file is not None
    encoder.file.unlink()
    read = {("study", Quantity("encoder", "loss", ""), 0): "encoder"}
    assert left_of(Matrix((encoder, weights, one), read), tmp_path) == [encoder]


@pytest.mark.parametrize("started", [True, False])
def test_a_torn_file_of_a_piece_is_made_anew_as_the_message_says(
    started: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = piece(tmp_path, "made")
    run(tmp_path, made)
    assert made.file is not None
    if not started:  # weights that are read before the process of a detector is started
        monkeypatch.setattr(runner, "command_of", refuse)
    after = piece(tmp_path, "after", f"print('error: {made.file} is torn'); raise SystemExit(2)",
                  ("made",))  # fmt: skip
    why = run(tmp_path, made, after).failed["after"]
    assert why.endswith(f"; it was made here: remove {made.file} and type the same command again")
    monkeypatch.undo()
    made.file.unlink()
    assert run(tmp_path, made, piece(tmp_path, "after", needs=("made",))).finished == [
        *("made", "after"),
    ]


def refuse(piece: Piece, output: Path) -> list[str]:
    raise InputError(f"{output / 'made' / 'done'} is torn")


def test_the_budget_stops_what_runs_and_the_same_call_goes_on(tmp_path: Path) -> None:
    pieces = [piece(tmp_path, "quick"), piece(tmp_path, "slow", SLOW), piece(tmp_path, "never")]
    outcome = run(tmp_path, *pieces, budget=0.8)
    assert outcome.out_of_time and outcome.finished == ["quick"] and outcome.signal == 0
    assert (tmp_path / "slow" / "checkpoint_1.pth").exists()  # it saved
    assert not (tmp_path / "never").exists()
    pieces[1] = piece(tmp_path, "slow")
    outcome = run(tmp_path, *pieces)
    assert outcome.finished == ["slow", "never"]
    assert not (tmp_path / "slow" / "checkpoint_1.pth").exists()  # lean


def test_a_signal_is_passed_on_and_told(tmp_path: Path) -> None:
    slow = piece(tmp_path, "slow", SLOW)
    threading.Thread(target=signal_when, args=(tmp_path / "slow" / "begun",), daemon=True).start()
    outcome = run(tmp_path, slow)
    assert outcome.signal == signal.SIGTERM
    assert (tmp_path / "slow" / "checkpoint_1.pth").exists()


def signal_when(file: Path) -> None:
    while not file.exists():
        threading.Event().wait(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_piece_of_another_caller_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with (tmp_path / "one" / ".claim").open("ab") as claim:
        assert try_lock(claim)
        outcome = run(tmp_path, piece(tmp_path, "one"), piece(tmp_path, "two", needs=("one",)))
    assert outcome.elsewhere == ["one"] and outcome.finished == []


def test_without_a_terminal_every_event_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        tmp_path,
        piece(tmp_path, "a"),
        piece(tmp_path, "b", FAILS),
        piece(tmp_path, "c", "", ("b",)),
    )
    said, bar = capsys.readouterr()
    assert [line.split("/")[-1] for line in said.splitlines()] == [
        f"started   {tmp_path.name} a",
        *(f"finished  {tmp_path.name} a", "2 of 3 pieces left", f"started   {tmp_path.name} b"),
        f"failed    {tmp_path.name} b: no such thing: name another",
        *(f"what it needs is not there  {tmp_path.name} c", "2 of 3 pieces left"),
    ]
    assert bar == ""


class EveryBar(tqdm):  # type: ignore[type-arg]
    """Drawn at every chance."""

    drawn: ClassVar[list[str]] = []

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "mininterval": 0})

    def display(self, *_: Any, **__: Any) -> None:
        self.drawn.append(str(self))


def test_the_bar_never_names_a_piece_that_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "tqdm", EveryBar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run(tmp_path, piece(tmp_path, "first_x"), piece(tmp_path, "second_x"))
    named = [tuple(name in line for name in ("first", "second")) for line in EveryBar.drawn[1:]]
    counts = [line.partition("/2")[0][-1] for line in EveryBar.drawn[1:]]
    assert set(zip(counts, named, strict=True)) == {
        *(("0", (True, False)), ("1", (False, True)), ("2", (False, False))),
    }


def write_log(folder: Path, losses: list[float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"iteration": i, "loss": loss, "accuracy": 10 * i} for i, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_a_number_of_a_log_is_of_its_last_fifth_and_only_of_a_finished_run(tmp_path: Path) -> None:
    a, b = (replace(piece(tmp_path, name), iterations=9) for name in "ab")
    write_log(a.folder, [5, 4, 5, 4, 5, 4, 5, 4, 3])
    assert logged(a, "loss") is None and logged(b, "loss") is None
    write_log(a.folder, [9, 4, 5, 4, 5, 4, 5, 4, 3, 1])
    assert logged(a, "loss") == 2 and logged(a, "accuracy") == 85
    assert logged(a, "jitter") == pytest.approx(((6 + 4) / 7 / 2) ** 0.5)
    # what its log says is known without its file, which is made again where another piece needs it
    read = {("study", Quantity("a", "loss", ""), 0): "a"}
    assert left_of(Matrix((a,), read), tmp_path) == []
    other = piece(tmp_path, "other", needs=("a",))
    assert left_of(Matrix((a, other), read), tmp_path) == [a, other]


def test_what_was_found_is_judged_and_said_at_the_end_without_a_row_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pieces, measures = [], {}
    for name, loss in (("a", 3.0), ("b", 2.0)):
        for seed in (0, 1):
            folder = tmp_path / f"{name}{seed}"
            write_log(folder, [5, 5, loss + seed / 100] + [loss + seed / 100] * 2)
            (folder / "checkpoint.pth").write_text("")
            pieces.append(Piece(folder.name, folder.name, folder, 0, (), folder / "checkpoint.pth"))
            measures["s", Quantity(name, "loss", ""), seed] = folder.name
    plan = StudyPlan(
        "s", "Is a's loss below b's?", "", 2, {}, {n: StudyEncoder(n, {}) for n in "ab"}, {}, {},
        [Hypothesis(read_claim("a.loss < b.loss"), 0.1)], (),
    )  # fmt: skip
    matrix = Matrix(pieces, measures)
    (judged,) = findings([plan], matrix, tmp_path)[0].judged
    assert judged.verdict == "refuted" and judged.comparison.difference == pytest.approx(1.0)
    code = run_and_report(
        [plan], matrix, tmp_path, [()], budget=None, lean=False, report=True, title=None
    )
    said = capsys.readouterr().out
    assert code == 0 and "refuted   a.loss < b.loss: +1.00 [" in said
    page = (tmp_path / "report.md").read_text("utf-8")
    assert "No probe and no detector has finished yet" in page and "| refuted | +1.00 (" in page
    assert "## Runs" not in page and "s,a,loss,,0,3.0" in (tmp_path / "values.csv").read_text()
