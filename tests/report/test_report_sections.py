"""The report's newer sections: published values, schedules, certainty, probes, files of tables."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from moco_det.report import compare_reports, make_report
from moco_det.report.document import Figures, Table
from moco_det.report.families import BY_LABELS, BY_SCHEDULE, FamilyAxis, blocks
from moco_det.report.groups import Group, group_runs
from moco_det.report.paper_comparison import (
    counterparts,
    deviation,
    paper_sentence,
    paper_tables,
    spread_limit,
)
from moco_det.report.screen import screen_lines
from moco_det.report.statistics import RULE
from moco_det.report.table_files import csv_text
from moco_det.report.tables import certainty_table, class_table
from moco_det.report.verdict import verdict
from moco_det.results import Row
from moco_det.results.published import find_table

SPREAD = (-0.2, -0.1, 0.0, 0.1, 0.2)
VOC_CONFIG = """\
MODEL:
  BACKBONE: {NAME: build_resnet_backbone}
  RESNETS: {DEPTH: 50, STRIDE_IN_1X1: false}
  WEIGHTS: "%s"
"""


def group_of(*data: dict[str, Any]) -> Group:
    rows = [Row(data=item, path=Path("results.jsonl"), line=i + 1) for i, item in enumerate(data)]
    (group,) = group_runs(rows)
    return group


def voc_row(make_row: Any, arm: str, seed: int, ap: float, **changes: Any) -> dict[str, Any]:
    """A run of Table 2(b) of the MoCo paper, as detectron2 would have made it."""
    given = {"engine": "detectron2", "iterations": 24000, **changes}
    row = make_row(arm, seed, (50.0, 80.0, 55.0), classes=[f"c{i}" for i in range(20)], **given)
    row["dataset"] |= {"train_images": 16551, "test_images": 4952}
    row["config"] = VOC_CONFIG % ("" if arm == "random" else f"{arm}.pkl")
    row["batch"] = changes.get("batch", 16)
    row["metrics"]["voc"] = {"AP": ap, "AP50": 81.3, "AP75": 58.8, "metric": "2007"}
    return row


def test_a_run_of_the_paper_s_setting_stands_beside_its_value(make_row: Any) -> None:
    # the paper: supervised 53.5, MoCo 55.9; a deviation of 0.2 is published for one trial
    rows = [voc_row(make_row, "supervised", s, 53.5 + d) for s, d in enumerate(SPREAD)]
    rows += [voc_row(make_row, "moco_v1", s, 54.9 + d) for s, d in enumerate(SPREAD)]
    group = group_of(*rows)
    every = counterparts(group)
    found = {one.arm.label: one for one in reversed(every)}
    # the paper comes first, a reproduction with other numbers after it
    assert [b.table.id for b in every if b.arm.label == "moco_v1"] == [
        "moco_v1.table2b",
        "repro.openselfsup.voc",
    ]
    assert found["supervised"].table.id == "moco_v1.table2b" and not found["supervised"].differs
    near, far = (deviation(found[arm], "voc", "AP") for arm in ("supervised", "moco_v1"))
    assert near is not None and near.word == "within published spread"
    assert far is not None and far.word == "outside published spread"
    assert far.value == pytest.approx(-1.0)
    # the box AP by COCO's metric has no published counterpart on VOC
    assert deviation(found["moco_v1"], "bbox", "AP") is None
    (table,) = paper_tables(group)
    notes = {f"{row[0].text}: {row[2].note}" for row in table.rows}
    assert {"supervised: published 53.5, within", "moco_v1: published 55.9, outside"} <= notes
    assert not any("Not comparable" in row[1].note for row in table.rows)
    assert "Of the cells with a comparable published value: " in paper_sentence([group])


def test_what_differs_from_the_paper_is_named_and_nothing_is_marked(make_row: Any) -> None:
    row = voc_row(make_row, "supervised", 0, 53.5, engine="standalone", batch=4, iterations=6000)
    one = counterparts(group_of(row))[0]
    assert one.differs == (
        "engine detectron2 there, standalone here",
        "iterations 24,000 there, 6,000 here",
        "batch 16 there, 4 here",
    )
    cell = deviation(one, "voc", "AP")
    assert cell is not None and cell.word == "not comparable"
    (table,) = paper_tables(group_of(row))
    assert table.rows[0][1].note.endswith("batch 16 there, 4 here") and not table.rows[0][2].tone
    assert "none is comparable" in paper_sentence([group_of(row)])


@pytest.mark.parametrize(
    ("solver", "differs"),
    [
        ("{BASE_LR: 0.02, STEPS: [18000, 22000]}", ()),
        ("{BASE_LR: 0.01, STEPS: [18000, 22000]}", ("learning rate 0.02 there, 0.01 here",)),
        (
            "{BASE_LR: 0.02, STEPS: [20000]}",
            ("its steps [18000, 22000] there, [20000] here",),
        ),
    ],
)
def test_another_learning_rate_is_another_schedule(
    make_row: Any, solver: str, differs: tuple[str, ...]
) -> None:
    row = voc_row(make_row, "supervised", 0, 53.5)
    row["config"] += f"SOLVER: {solver}\n"
    found = counterparts(group_of(row))
    assert [b.differs for b in found if b.table.id == "moco_v1.table2b"] == [differs]


def test_weights_that_were_trained_here_are_not_the_paper_s(make_row: Any) -> None:
    row = voc_row(make_row, "moco_v1", 0, 55.9)
    row["init"]["source"] = {"format": "moco-det/1", "method": "moco_v1"}
    one = counterparts(group_of(row))[0]
    assert "by this project" in one.differs[-1]


def test_other_data_or_another_detector_has_no_counterpart(make_row: Any) -> None:
    other = voc_row(make_row, "supervised", 0, 53.5)
    other["dataset"]["test_images"] = 72
    assert counterparts(group_of(other)) == []
    other = voc_row(make_row, "supervised", 0, 53.5)
    other["config"] = other["config"].replace("DEPTH: 50", "DEPTH: 18")
    assert counterparts(group_of(other)) == []
    assert paper_tables(group_of(other)) == []
    assert "Nothing published" in paper_sentence([group_of(other)])


def test_epochs_in_the_arm_s_name_choose_the_row(make_row: Any) -> None:
    row = voc_row(make_row, "mocov2", 0, 57.4)
    row["init"]["source"] = {"format": "moco", "method": "moco_v2", "file": "moco_v2_800ep.pth"}
    (one,) = counterparts(group_of(row))
    assert one.row.epochs == 800 and one.row.values["voc.AP"] == 57.4


@pytest.mark.parametrize(("arm", "ap"), [("moco_v1", 55.9), ("moco_ig1b", 57.2)])
def test_weights_of_a_billion_images_stand_beside_the_row_of_theirs(
    make_row: Any, arm: str, ap: float
) -> None:
    row = counterparts(group_of(voc_row(make_row, arm, 0, 57.0)))[0].row
    assert (row.method, row.values["voc.AP"]) == ("moco_v1", ap)


def test_the_published_spread_by_hand() -> None:
    voc, coco = find_table("moco_v1.table2b"), find_table("moco_v1.table5a")
    # 1.96 * 0.2 * sqrt(1/5 + 1/5) = 0.248
    assert spread_limit(voc, voc.rows[0], "voc.AP", 5) == pytest.approx(0.248, abs=1e-3)
    assert spread_limit(coco, coco.rows[0], "bbox.AP", 1) == 0.3
    assert spread_limit(coco, coco.rows[0], "bbox.AP50", 1) is None


def arms(make_row: Any, gain: float, **changes: Any) -> list[dict[str, Any]]:
    made = [
        make_row("supervised", s, (30 + d, 50.0, 20.0), **changes) for s, d in enumerate(SPREAD)
    ]
    return made + [
        make_row("moco", s, (30 + gain + d, 50.0, 20.0), **changes) for s, d in enumerate(SPREAD)
    ]


def family(rows: list[dict[str, Any]], axis: FamilyAxis) -> list[Any]:
    """The tables and charts of the one family of these rows; empty where they are none."""
    groups = group_runs([Row(data=data, path=Path("r"), line=1) for data in rows])
    return [block for block in blocks(groups, axis) if isinstance(block, Table | Figures)]


def test_schedules_stand_side_by_side_with_the_gain_over_supervised(make_row: Any) -> None:
    rows = [*arms(make_row, -1.0, iterations=90), *arms(make_row, 1.0, iterations=180)]
    table, charts = family(rows, BY_SCHEDULE)
    assert table.header == ("arm", "1x (90)", "2x (180)")
    moco = table.rows[1]
    assert moco[0].text == "moco" and (moco[1].tone, moco[2].tone) == ("loss", "gain")
    assert moco[2].note.startswith("+1.0 [")
    assert len(charts.figures) == 1 and "whisker" in charts.figures[0].svg


def test_settings_that_differ_in_more_than_the_schedule_are_no_family(make_row: Any) -> None:
    rows = [*arms(make_row, 1.0, iterations=90), *arms(make_row, 1.0, iterations=180, lr=0.5)]
    assert family(rows, BY_SCHEDULE) == []


def few(make_row: Any, images: int, gain: float, **changes: Any) -> list[dict[str, Any]]:
    rows = arms(make_row, gain, **changes)
    for row in rows:
        row["dataset"] |= {"train_images": images, "train_fingerprint": f"sha256:{images:064d}"}
        row["config"] = row["config"].replace("toy_train", f"toy_{images}")
    return rows


def test_numbers_of_labelled_images_stand_side_by_side(make_row: Any) -> None:
    rows = [*few(make_row, 100, -1.0), *few(make_row, 10, 3.0)]
    table, charts = family(rows, BY_LABELS)
    assert table.header == ("arm", "10 images", "100 images")
    assert [cell.text for cell in table.rows[1]] == ["moco", "33.0 ± 0.2", "29.0 ± 0.2"]
    assert len(charts.figures) == 1 and charts.figures[0].svg.count('class="dot') == 4
    assert family(rows, BY_SCHEDULE) == []


def test_other_images_under_another_schedule_are_no_family(make_row: Any) -> None:
    rows = [*few(make_row, 100, -1.0), *few(make_row, 10, 3.0, iterations=180)]
    assert family(rows, BY_LABELS) == []


def test_the_table_of_certainty_says_interval_pairs_and_seeds(make_row: Any) -> None:
    rows = arms(make_row, 0.1)
    rows += [make_row("dense", s, (30 + 2 + d, 50.0, 20.0)) for s, d in enumerate(SPREAD)]
    table = certainty_table(group_of(*rows))
    assert table is not None
    by_name = {row[0].text: row for row in table.rows}
    moco, dense = by_name["moco − supervised"], by_name["dense − supervised"]
    assert moco[1].text == "not distinguishable" and dense[1].text == "higher"
    assert moco[3].note.startswith("corrected ") and moco[0].note == "box AP, n=5"
    # the deviation is 0.158; 0.5 AP is 3.2 deviations, which three seeds find
    assert moco[table.header.index("seeds for 0.5 / 1 / 2 AP")].text == "3 / 2 / 2"
    # every pair differs by the same 0.1, which leaves a paired test no spread
    assert moco[table.header.index("paired")].text == "+0.1"


@pytest.mark.parametrize(("moco", "asked"), [(30.01, False), (30.4, True)])
def test_nobody_is_told_the_seeds_that_a_difference_of_nothing_needs(
    make_row: Any, moco: float, asked: bool
) -> None:
    values = {"sup": (29.0, 30.0, 31.0), "moco": (moco - 1, moco, moco + 1)}
    rows = [
        make_row(arm, seed, (ap, 50.0, 20.0))
        for arm, trials in values.items()
        for seed, ap in enumerate(trials)
    ]
    said = " ".join(map(str, verdict(group_of(*rows))))
    assert "a true difference of 1" in said
    assert ("one as large as the 0.4 measured" in said) == asked and "0.0 measured" not in said


def test_many_arms_are_listed_by_verdict(make_row: Any, write_rows: Any, tmp_path: Path) -> None:
    rows = arms(make_row, 1.0)
    for arm, gain in (("dense", -2.0), ("byol", 0.0), ("swav", 2.0)):
        rows += [make_row(arm, s, (30 + gain + d, 50.0, 20.0)) for s, d in enumerate(SPREAD)]
    files = make_report([write_rows(rows)], tmp_path / "out")
    text = files["report.md"].read_text(encoding="utf-8")
    assert "**Higher than supervised in box AP**: moco +1.0" in text
    assert "**Lower than supervised in box AP**: dense −2.0" in text
    assert "**Not distinguishable from supervised in box AP**: byol 0.0" in text


def test_one_seed_has_no_certainty_and_says_so(make_row: Any) -> None:
    table = certainty_table(group_of(make_row("supervised"), make_row("moco")))
    assert table is not None
    assert [cell.text for cell in table.rows[0]][1] == "not enough trials"
    assert certainty_table(group_of(make_row("moco"))) is None


@pytest.mark.parametrize("others", [0, 4])
def test_an_arm_whose_ap_is_undefined_is_named_in_the_verdict(make_row: Any, others: int) -> None:
    rows = arms(make_row, 1.0)
    rows += [make_row("dense", seed, (None, None, None)) for seed in range(3)]
    for k in range(others):
        rows += [make_row(f"arm{k}", s, (30 + d, 50.0, 20.0)) for s, d in enumerate(SPREAD)]
    said = " ".join(map(str, verdict(group_of(*rows))))
    assert "Box AP of dense is undefined in every run." in said


def test_differences_of_classes_are_said_to_be_uncorrected(make_row: Any) -> None:
    rows = [make_row(arm, per_class={"cat": 1.0}) for arm in ("supervised", "moco")]
    assert "not corrected for the number of classes" in class_table(group_of(*rows), "bbox").caption


def test_the_csv_has_one_line_per_arm_and_metric(make_row: Any) -> None:
    rows = [voc_row(make_row, "supervised", s, 53.5 + d) for s, d in enumerate(SPREAD)]
    rows += [voc_row(make_row, "moco_v1", s, 55.9 + d) for s, d in enumerate(SPREAD)]
    lines = list(csv.DictReader(io.StringIO(csv_text([group_of(*rows)]))))
    assert len(lines) == 2 * 2 * 3  # bbox and voc, two arms, three APs
    voc = next(x for x in lines if (x["arm"], x["ruler"], x["metric"]) == ("moco_v1", "voc", "AP"))
    assert (voc["mean"], voc["n"], voc["published"]) == ("55.9", "5", "55.9")
    assert voc["against_supervised"] == "2.4" and voc["verdict"] == "higher"
    assert voc["mark"] == "within published spread"
    assert "Table 2(b)" in voc["published_source"]


def test_class_differences_are_drawn_largest_gain_first(
    make_row: Any, write_rows: Any, tmp_path: Path
) -> None:
    rows = []
    for s, d in enumerate(SPREAD):
        for arm, cat, dog in (("supervised", 30.0, 30.0), ("moco", 28.0, 35.0)):
            classes = {"cat": cat + d, "dog": dog + d}
            rows.append(make_row(arm, s, (30 + d, 50.0, 20.0), per_class=classes))
    files = make_report([write_rows(rows)], tmp_path / "out")
    html = files["report.html"].read_text(encoding="utf-8")
    assert "dog: +5.00" in html and "cat: -2.00" in html
    assert html.index("dog: +5.00") < html.index("cat: -2.00")


def test_probes_of_the_same_weights_stand_beside_their_ap(
    make_row: Any, write_rows: Any, tmp_path: Path
) -> None:
    rows = arms(make_row, 1.0)
    for row in rows:
        row["init"]["source"] = {"sha256": row["init"]["name"].ljust(64, "0"), "method": None}
    probe = make_row("moco", task="probe", protocol="knn", config="{k: 200}")
    probe["init"]["sha256"] = "moco".ljust(64, "0")
    probe["metrics"] = {"probe": {"top1": 43.2, "top5": None, "mean_class": 40.0}}
    files = make_report([write_rows([*rows, probe])], tmp_path / "out")
    text = files["report.md"].read_text(encoding="utf-8")
    assert "| arm | box AP | top-1, kNN |" in text
    assert "| moco | 31.0 ± 0.2 (n=5) | 43.2 (n=1) |" in text
    assert "| supervised | 30.0 ± 0.2 (n=5) | – (not probed) |" in text
    probe["init"]["sha256"] = "other".ljust(64, "0")
    files = make_report([write_rows([*rows, probe])], tmp_path / "out")
    assert "top-1, kNN" not in files["report.md"].read_text(encoding="utf-8")


def test_where_nothing_was_learned_every_output_says_so_and_tests_nothing(
    make_row: Any, write_rows: Any, tmp_path: Path
) -> None:
    rows = [
        make_row(arm, seed, (ap + seed / 100, 4.9, 0.0), (mask + seed / 10, 5.0, 0.0))
        for arm, ap, mask in (("random", 0.1, 1.0), ("supervised", 0.1, 2.0), ("moco", 1.3, 2.1))
        for seed in (0, 1)
    ]
    files = make_report([write_rows(rows)], tmp_path / "out")
    text = files["report.md"].read_text(encoding="utf-8")
    assert "**Nothing was learned** in box AP: AP50 is below 5 in every arm" in text
    verdict_text = text.split("## Average precision")[0]
    assert "box AP [" not in verdict_text and "mask AP [" in verdict_text
    assert "+1.2 nothing learned" in text and "moco − supervised (box AP" not in text
    cells = list(csv.DictReader(io.StringIO(files["tables.csv"].read_text(encoding="utf-8"))))
    verdicts = {(c["ruler"], c["verdict"], c["p"] != "") for c in cells if c["arm"] == "moco"}
    assert {v for v in verdicts if v[0] == "bbox"} == {("bbox", "nothing learned", False)}
    assert ("segm", "nothing learned", False) not in verdicts
    shown = " ".join(screen_lines(files["report.md"], files["tables.csv"]))
    assert "Nothing was learned in box AP" in shown
    (box, *_) = compare_reports(group_of(*rows).rows, group_of(*rows).rows).changes
    assert (box.metric, box.outcome) == ("bbox", "nothing learned")


def test_two_arms_near_nothing_are_not_compared_beside_one_that_learned(make_row: Any) -> None:
    means = {"random": (0.1, 1.0), "supervised": (20.0, 40.0), "moco": (0.3, 1.5)}
    rows = [
        make_row(arm, seed, (ap + seed / 100, ap50, 5.0))
        for arm, (ap, ap50) in means.items()
        for seed in (0, 1)
    ]
    group = group_of(*rows)
    said = " ".join(f"{one.finding}{one.text}" for one in verdict(group))
    assert "moco is lower than supervised" in said and "Nothing was learned" not in said
    assert "moco against random initialisation: +0.2 box AP, but nothing learned" in said
    table = certainty_table(group)
    assert table is not None
    compared = [row[0].text for row in table.rows]
    assert compared == ["random − supervised", "moco − supervised"]


def test_page_csv_tex_and_diff_take_their_intervals_from_one_rule(
    make_row: Any, write_rows: Any, tmp_path: Path
) -> None:
    # the case of test_report_statistics.py: by Welch alone it would not be higher
    rows = [
        make_row(arm, seed, (mean + sign * std / 2**0.5, 50.0, 20.0))
        for arm, mean, std in (
            ("random", 2.0, 0.2),
            ("supervised", 4.0, 0.4),
            ("moco", 6.4, 0.1),
            ("dense", 5.0, 0.3),
        )
        for seed, sign in ((0, 1), (1, -1))
    ]
    files = make_report([write_rows(rows)], tmp_path / "out")
    html, text, table, tex = (path.read_text(encoding="utf-8") for path in files.values())
    assert "+2.4 box AP [+1.4, +3.4]" in text and "+2.4 [+1.4, +3.4]" in html
    assert f"difference ({RULE});" in text and f"two-sided p ({RULE});" in text
    (cell,) = (
        c
        for c in csv.DictReader(io.StringIO(table))
        if (c["arm"], c["ruler"], c["metric"]) == ("moco", "bbox", "AP")
    )
    assert (cell["low"], cell["high"], cell["verdict"]) == ("1.3701", "3.4299", "higher")
    assert r"\gain{+2.4}" in tex
    there = [row | {"metrics": {"bbox": {"AP": 4.0, "AP50": 50.0, "AP75": 20.0}}} for row in rows]
    moco = compare_reports(group_of(*rows).rows, group_of(*there).rows).changes[3]
    # pooled over the arms of both reports, half of which have no spread
    assert moco.here.label == "moco" and moco.comparison.deviation == pytest.approx(0.0375**0.5)
