"""The page: its numbers, its safety, its size."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moco_det.foundation.errors import InputError
from moco_det.report import make_report

from .parsed_page import page_of, table_with


def three_arms(make_row: Any) -> list[dict[str, Any]]:
    return [
        make_row("random", 0, (10.0, 20.0, 5.0)),
        make_row("random", 1, (11.0, 21.0, 6.0)),
        make_row("supervised", 0, (30.0, 50.0, 20.0)),
        make_row("supervised", 1, (32.0, 52.0, 22.0)),
        make_row("moco", 0, (31.0, 51.0, 21.0)),
        make_row("moco", 1, (34.0, 54.0, 24.0)),
    ]


def test_the_tables_numbers_are_those_computed_by_hand(
    tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    page, markdown = page_of(write_rows(three_arms(make_row)), tmp_path / "out")
    table = table_with(page, "AP75", "moco")
    assert table[0] == ["arm", "n", "AP", "AP50", "AP75", "AP − random"]
    moco = table[3]
    # mean (31 + 34) / 2 = 32.5, std sqrt(2 * 1.5^2) = 2.12; 32.5 - 31 = +1.5
    assert moco[:2] == ["moco", "2"]
    assert moco[2].startswith("32.5 ± 2.1|+1.5 [")
    # variances 0.5, 2 and 4.5: se = sqrt(4.5/2 + 2/2) = 1.803, of the pooled 7/3 it were 1.53;
    # df = 7^2 / (0.5^2 + 2^2 + 4.5^2) = 2, t = 4.303
    low, high = (float(v.replace("−", "-")) for v in re.findall(r"[+−][\d.]+", moco[2])[1:])
    assert low == pytest.approx(1.5 - 7.76, abs=0.06)
    assert high == pytest.approx(1.5 + 7.76, abs=0.06)
    assert moco[5].startswith("+22.0|")
    assert "moco and supervised are not distinguishable at n=2: +1.5 box AP" in page.text
    assert "32.5 ± 2.1 (+1.5 \\[" in markdown or "32.5 ± 2.1 (+1.5 [" in markdown


def test_engines_and_precisions_are_never_averaged_together(
    tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    rows = [
        make_row(seed=0, box=(10.0, 10.0, 10.0)),
        make_row(seed=1, box=(30.0, 30.0, 30.0), engine="detectron2"),
        make_row(seed=2, box=(50.0, 50.0, 50.0), precision="bfloat16"),
    ]
    page, _ = page_of(write_rows(rows), tmp_path / "out")
    cells = [row[2] for t in page.tables if "AP75" in t[0] for row in t[1:]]
    assert cells == ["10.0", "30.0", "50.0"]
    assert "engine: standalone → detectron2" in page.text


def test_the_page_loads_nothing_and_runs_only_its_own_sorting(
    tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    page, _ = page_of(write_rows(three_arms(make_row)), tmp_path / "out")
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]
    assert "link" not in {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:"))
        assert not [name for name in attributes if name.startswith("on")]
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?://|fetch\(|import\(", html)
    script = html.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    assert f"script-src 'sha256-{digest}'\"" in html and "default-src 'none'" in html
    anchors = {a["id"] for _, a in page.tags if a.get("id")}
    links = {str(a["href"])[1:] for tag, a in page.tags if tag == "a"}
    assert links <= anchors


def test_markup_in_names_stays_text(tmp_path: Path, make_row: Any, write_rows: Any) -> None:
    evil = '<img src=x onerror="alert(1)">'
    rows = [
        make_row(
            evil,
            seed,
            classes=[evil],
            per_class={evil: 5.0},
            warnings=[evil],
            command=evil + "```",
            run=evil,
            config_name=evil,
        )
        for seed in (0, 1)
    ]
    page, markdown = page_of(write_rows(rows), tmp_path / "out", title=evil)
    assert "img" not in {tag for tag, _ in page.tags}
    assert evil in page.text
    fenced = re.sub(r"(?ms)^(`{3,})\n.*?^\1$", "", markdown)
    assert "<img" not in fenced


def test_undefined_metrics_are_a_dash_and_never_nan(
    tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    rows = [
        make_row("supervised", 0, (None, None, None)),
        make_row("moco", 0, (None, 40.0, None), per_class={"cat": None}),
    ]
    page, markdown = page_of(write_rows(rows), tmp_path / "out")
    table = table_with(page, "AP75", "moco")
    assert table[2] == ["moco", "0", "–", "40.0", "–"]
    for text in (page.text.split('"use strict"')[0], markdown):
        assert not re.search(r"\b[Nn]a[Nn]\b|\bNone\b(?!\.)", text)
    assert "undefined in every run" in page.text


def test_a_failed_row_is_listed_and_enters_no_mean(
    tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    rows = [make_row(seed=0), make_row(seed=1, status="failed", error="loss is not finite at 7")]
    page, markdown = page_of(write_rows(rows), tmp_path / "out")
    assert table_with(page, "AP75", "moco")[1][1:3] == ["1", "30.0"]
    for text in (page.text, markdown):
        assert "loss is not finite at 7" in text
    assert "1 run failed and enters no mean" in page.text
    assert "tried again" not in page.text


def test_a_failed_run_that_finished_later_is_said_to_have(
    tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    rows = [make_row(status="failed", error="disk full"), make_row()]
    page, markdown = page_of(write_rows(rows), tmp_path / "out")
    for text in (page.text, markdown):
        assert "finished when it was tried again" in text


def test_a_failed_row_that_never_learned_its_data_is_listed(
    tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    failed = make_row(seed=1, status="failed", schema=2, error="no images", precision=None)
    failed |= {"iterations": None, "batch": None, "hardware": {"device": None, "cores": None}}
    failed["engine"] |= {"version": None, "torch": None, "torchvision": None}
    for key in ("train_fingerprint", "test_fingerprint", "train_images", "test_images", "classes"):
        failed["dataset"][key] = None
    page, _ = page_of(write_rows([make_row(), failed]), tmp_path / "out")
    unknown = ["standalone", "–", "–", "–", "–", "toy_train", "toy_test", "1"]
    assert unknown in table_with(page, "machine", "standalone")
    assert "no images" in page.text


def test_one_arm_alone_is_reported_without_a_comparison(
    tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    page, _ = page_of(write_rows([make_row()]), tmp_path / "out")
    assert "There is one arm, moco, so nothing is compared." in page.text
    assert table_with(page, "AP75", "moco")[1] == ["moco", "1", "30.0", "50.0", "20.0"]


def test_arms_that_are_not_matched_are_not_credited(
    tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    rows = three_arms(make_row)
    for row in rows[4:]:
        row["init"]["input"] = {"format": "BGR"}
    page, _ = page_of(write_rows(rows), tmp_path / "out")
    assert "The arms are not matched" in page.text
    assert "INPUT.FORMAT" in page.text
    assert "moco's weights demand BGR" in page.text


def test_matched_arms_show_the_one_key_in_which_they_differ(
    tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    page, _ = page_of(write_rows(three_arms(make_row)), tmp_path / "out")
    table = next(t for t in page.tables if t[0][0] == "key")
    assert table[1:] == [
        ["MODEL.WEIGHTS", "(none)", "supervised.pkl", "moco.pkl",
         "allowed: the initialisation under comparison"]
    ]  # fmt: skip


def test_conversion_proofs_are_printed(tmp_path: Path, make_row: Any, write_rows: Any) -> None:
    row = make_row()
    row["init"]["verified"] = {
        "max_abs_difference": 3.6e-6,
        "per_stage": {"stem": 0.0, "res2": 3.6e-6},
    }
    row["init"]["source"] = {"format": "moco-det/1", "method": "moco_v2", "arch": "resnet18"}
    page, _ = page_of(write_rows([row]), tmp_path / "out")
    table = next(t for t in page.tables if "sha256" in t[0])
    assert table[0][-2:] == ["stem", "res2"]
    assert table[1][1] == "moco.pkl|moco-det/1 · moco_v2 · resnet18"
    assert table[1][2] == row["init"]["sha256"]
    assert table[1][-3:] == ["3.6e−06", "0", "3.6e−06"]


def test_voc_and_mask_tables_appear_where_they_were_measured(
    tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    row = make_row(mask=(7.0, 8.0, 6.0))
    row["metrics"]["voc"] = {"AP": 41.0, "AP50": 71.0, "AP75": 35.0, "metric": "2007"}
    page, markdown = page_of(write_rows([row]), tmp_path / "out")
    for text in (page.text, markdown):
        assert "Mask AP by the COCO metric" in text
        assert "Box AP by the VOC metric (2007)" in text
        assert "71.0" in text


def test_torn_lines_are_told_to_the_reader(tmp_path: Path, make_row: Any, write_rows: Any) -> None:
    path = write_rows([make_row()])
    path.write_text(path.read_text() + '{"schema": 1', encoding="utf-8")
    page, _ = page_of(path, tmp_path / "out")
    assert "results.jsonl line 2: torn" in page.text


def test_curves_are_drawn_from_the_runs_own_logs(
    tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    path = write_rows([make_row(seed=0), make_row(seed=1)])
    run = tmp_path / "runs" / "moco_seed0"
    run.mkdir(parents=True)
    lines = [{"iteration": i, "total_loss": 2.0 - i / 100} for i in range(0, 100, 10)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    page, _ = page_of(path, tmp_path / "out")
    labels = [a.get("aria-label") for tag, a in page.tags if tag == "svg"]
    assert "Training loss against iteration" in labels
    assert "metrics.jsonl is missing for 1 run." in page.text


@pytest.mark.parametrize("evaluations", [1, 2])
def test_a_single_evaluation_is_no_curve(
    tmp_path: Path, make_row: Any, write_rows: Any, evaluations: int
) -> None:
    path = write_rows([make_row(seed=0)])
    run = tmp_path / "runs" / "moco_seed0"
    run.mkdir(parents=True)
    lines = [{"iteration": i, "bbox/AP": 10.0 + i} for i in range(evaluations)]
    lines += [{"iteration": i, "total_loss": 1.0} for i in range(2)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    page, _ = page_of(path, tmp_path / "out")
    assert ("Box AP at each evaluation" in page.text) is (evaluations > 1)


def test_missing_or_empty_results_are_input_errors(
    tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    with pytest.raises(InputError, match="no results given"):
        make_report([], tmp_path / "out")
    with pytest.raises(InputError, match="gone"):
        make_report([tmp_path / "gone"], tmp_path / "out")
    with pytest.raises(InputError, match="no finished rows"):
        make_report([write_rows([])], tmp_path / "out")
    with pytest.raises(InputError, match="no finished rows"):
        make_report([write_rows([make_row(status="failed")])], tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        make_report([write_rows([make_row()])], tmp_path / "file")


def test_the_same_rows_give_the_same_bytes_and_leave_no_partial_file(
    tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    path = write_rows(three_arms(make_row))
    first = {n: p.read_bytes() for n, p in make_report([path], tmp_path / "out").items()}
    second = {n: p.read_bytes() for n, p in make_report([path], tmp_path / "out").items()}
    assert first == second
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "report.html",
        "report.md",
        "tables.csv",
        "tables.tex",
    ]


def test_two_hundred_rows_make_a_small_page(tmp_path: Path, make_row: Any, write_rows: Any) -> None:
    classes = [f"class {i}" for i in range(20)]
    rng = np.random.default_rng(0)
    rows = [
        make_row(
            arm,
            seed,
            rng.uniform(20, 40, 3).tolist(),
            lr=lr,
            classes=classes,
            per_class=dict(zip(classes, rng.uniform(0, 60, 20).tolist(), strict=True)),
            output_dir="run",
        )
        for arm in ("random", "supervised", "moco", "instdisc")
        for seed in range(10)
        for lr in (0.01, 0.02, 0.03, 0.04, 0.05)
    ]
    assert len(rows) == 200
    (tmp_path / "run").mkdir()
    lines = [{"iteration": i, "total_loss": 1.0, "bbox/AP": 2.0} for i in range(150)]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page, _ = page_of(write_rows(rows), tmp_path / "out")
    assert (tmp_path / "out" / "report.html").stat().st_size < 2_000_000
    assert "200 finished runs in 5 settings" in page.text
    assert "SOLVER.BASE_LR: 0.01 → 0.05" in page.text


def test_results_and_report_import_neither_torch_nor_an_engine() -> None:
    code = (
        "import sys, moco_det.results, moco_det.results.matched, moco_det.report;"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'pretrain', 'detectron2')"
        " or m.startswith(('moco_det.standalone', 'moco_det.plugin'))];"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_cell_names_its_column_for_narrow_screens(
    tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    page, _ = page_of(write_rows(three_arms(make_row)), tmp_path / "out")
    columns = {attributes["data-column"] for tag, attributes in page.tags if tag == "td"}
    named = {name for table in page.tables for name in table[0][1:]}
    assert columns == named >= {"n", "AP50", "AP − random"}


def test_a_note_follows_the_verdict_on_the_page_and_in_the_text(
    tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    files = make_report([write_rows([make_row()])], tmp_path / "out", notes=["Mind a < b."])
    _, verdict = files["report.md"].read_text().split("## Verdict")
    assert "Mind a" in verdict.split("\n## ")[0]
    assert "Mind a &lt; b." in files["report.html"].read_text()
