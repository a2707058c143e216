"""Two reports compared: improved, regressed, or within noise; the exit code tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moco_det.foundation.errors import InputError
from moco_det.report import compare_reports
from moco_det.results import Row
from moco_det_tools.report import main

SPREAD = (-0.4, 0.0, 0.4)


def trials(make_row: Any, arm: str, mean: float, **changes: Any) -> list[dict[str, Any]]:
    return [make_row(arm, seed, (mean + d, 50.0, 20.0), **changes) for seed, d in enumerate(SPREAD)]


def rows(*data: dict[str, Any]) -> list[Row]:
    return [Row(data=item, path=Path("results.jsonl"), line=i + 1) for i, item in enumerate(data)]


def test_changes_beyond_noise_are_named_and_the_others_are_noise(make_row: Any) -> None:
    there = rows(
        *trials(make_row, "supervised", 30.0),
        *trials(make_row, "moco", 31.0),
        *trials(make_row, "random", 10.0),
    )
    here = rows(
        *trials(make_row, "supervised", 33.0),
        *trials(make_row, "moco", 28.0),
        *trials(make_row, "random", 10.1),
    )
    diff = compare_reports(here, there)
    outcomes = {change.here.label: change.outcome for change in diff.changes}
    assert outcomes == {"supervised": "improved", "moco": "regressed", "random": "within noise"}
    assert diff.regressed
    moco = next(change for change in diff.changes if change.here.label == "moco")
    assert moco.comparison.difference == pytest.approx(-3.0)
    assert (moco.comparison.p_holm or 0) > (moco.comparison.p or 1)
    assert not compare_reports(there, there).regressed
    said = diff.lines()[-1]
    assert said.startswith("3 compared: ")
    assert all(part in said for part in ("1 improved", "1 regressed", "1 within noise"))


def test_versions_may_differ_and_are_named(make_row: Any) -> None:
    newer = trials(make_row, "moco", 31.0)
    for row in newer:
        row["engine"] = {**row["engine"], "version": "2", "torch": "2.7"}
    (change,) = compare_reports(rows(*newer), rows(*trials(make_row, "moco", 31.0))).changes
    assert change.notes == "engine 2 here, 1 there; torch 2.7 here, 2.6 there"
    assert change.outcome == "within noise"


def test_a_report_with_two_versions_of_the_engine_is_not_compared_by_one_of_them(
    make_row: Any,
) -> None:
    newer = trials(make_row, "moco", 31.0)
    for row in newer:
        row["engine"] = {**row["engine"], "version": "2"}
    both = rows(*trials(make_row, "moco", 28.0), *newer)
    for pair in ((both, rows(*newer)), (rows(*newer), both)):
        with pytest.raises(InputError, match=r"moco on toy_test .* versions 1 and 2: compare"):
            compare_reports(*pair)


def test_the_tool_says_what_it_skipped_of_both_reports(
    make_row: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "".join(json.dumps(row) + "\n" for row in trials(make_row, "moco", 31.0))
    for name in ("new", "old"):
        (tmp_path / f"{name}.jsonl").write_text(text + '{"run": "to', encoding="utf-8")
    assert main([str(tmp_path / "new.jsonl"), "--against", str(tmp_path / "old.jsonl")]) == 0
    said = capsys.readouterr().err
    assert "warning: new.jsonl line 4: torn" in said and "warning: old.jsonl line 4: torn" in said
    (tmp_path / "new.jsonl").write_text(text + "{\n" * 12, encoding="utf-8")
    main([str(tmp_path / "new.jsonl"), "--against", str(tmp_path / "old.jsonl")])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11 and lines[-1] == "warning: and 3 lines more"


def test_rows_without_a_finished_run_are_named_as_such(make_row: Any) -> None:
    some, none = rows(*trials(make_row, "moco", 31.0)), rows()
    with pytest.raises(InputError, match="^the rows to compare with hold no finished"):
        compare_reports(some, none)
    with pytest.raises(InputError, match="^these rows hold no finished"):
        compare_reports(none, some)


def test_one_trial_is_not_enough_and_is_no_regression(make_row: Any) -> None:
    diff = compare_reports(
        rows(make_row("moco", 0, (10.0, 1.0, 1.0))), rows(*trials(make_row, "moco", 31.0))
    )
    assert diff.changes[0].outcome == "not enough trials" and not diff.regressed


def test_what_only_one_report_has_is_named(make_row: Any) -> None:
    diff = compare_reports(
        rows(*trials(make_row, "moco", 31.0), *trials(make_row, "dense", 31.0)),
        rows(*trials(make_row, "moco", 31.0), *trials(make_row, "moco", 31.0, lr=0.5)),
    )
    assert len(diff.changes) == 1
    here, there = diff.only_one
    assert here.startswith("only here: dense on ") and there.startswith("only there: moco on ")


def test_reports_that_share_nothing_are_refused(make_row: Any) -> None:
    with pytest.raises(InputError, match="share no setting"):
        compare_reports(
            rows(*trials(make_row, "moco", 31.0)),
            rows(*trials(make_row, "moco", 31.0, precision="bfloat16")),
        )
    with pytest.raises(InputError, match="share no arm"):
        compare_reports(
            rows(*trials(make_row, "moco", 31.0)), rows(*trials(make_row, "dense", 31.0))
        )


def test_the_tool_s_exit_code_tells_a_regression(
    make_row: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for name, mean in (("old", 31.0), ("new", 28.0)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(
            "".join(json.dumps(row) + "\n" for row in trials(make_row, "moco", mean)),
            encoding="utf-8",
        )
        paths.append(str(path))
    old, new = paths
    assert main([new, "--against", old]) == 1
    assert "regressed: moco, box AP: 28.0 ± 0.4 here, 31.0 ± 0.4 there" in capsys.readouterr().out
    assert main([old, "--against", new, "-o", str(tmp_path / "out")]) == 0
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Against the other report" in html and "improved" in html
    with pytest.raises(InputError, match="nothing to do"):
        main([old])
