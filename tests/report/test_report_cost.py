"""What detectors cost is shown where it differs, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moco_det.report.charts import Line, line_chart
from tests.report.parsed_page import ParsedPage, page_of

R50 = {
    "parameters": 44_398_384,
    "trainable_parameters": 44_398_384,
    "backbone_flops": 120_198_758_400,
    "image": [800, 1088],
    "images_per_second": 17.26,
}
SMALL = {**R50, "parameters": 9_120_000, "trainable_parameters": 9_120_000}
SMALL |= {"backbone_flops": 4_560_000_000, "images_per_second": 80.0}
FROZEN = {**R50, "trainable_parameters": 17_000_000, "images_per_second": 30.5}


def setting(
    make_row: Any, name: str, cost: dict[str, Any] | None, *, ap: float, **changes: Any
) -> list[dict[str, Any]]:
    """Two arms of two seeds each; `heads` is MODEL.ROI_HEADS.NAME."""
    heads = changes.pop("heads", "StandardROIHeads")
    rows = []
    for arm, gain in (("supervised", 0.0), ("moco", 1.0)):
        for seed in (0, 1):
            row = make_row(arm, seed, (ap + gain + seed, 60.0, 30.0), **changes)
            row["config"] += f"NAME: {name}\nMODEL.ROI_HEADS.NAME: {heads}\n"
            row |= {"config_name": name, "run": f"{name}_{row['run']}"}
            rows.append({**row, "cost": cost} if cost else row)
    return rows


def cost_tables(page: ParsedPage) -> list[list[list[str]]]:
    return [table for table in page.tables if "backbone GFLOPs" in table[0]]


def charts(page: ParsedPage) -> list[str | None]:
    labels = [attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg"]
    return [label for label in labels if label and "cost" in label]


def test_settings_that_differ_have_a_table_and_a_picture(
    make_row: Any, write_rows: Any, tmp_path: Path
) -> None:
    rows = setting(make_row, "r50", R50, ap=36.0) + setting(make_row, "small", SMALL, ap=28.0)
    page, markdown = page_of(write_rows(rows), tmp_path)
    assert cost_tables(page) == [
        [
            ["setting", "backbone GFLOPs", "parameters", "trained", "images/s"],
            ["A: r50", "120.2|800 × 1088", "44.4 M", "44.4 M", "17.3"],
            ["B: small", "4.56|800 × 1088", "9.12 M", "9.12 M", "80.0"],
        ]
    ]
    assert charts(page) == ["Box AP against the cost of the backbone"]
    for point in ("supervised: 36.5 at 120.2", "moco: 37.5 at 120.2", "moco: 29.5 at 4.56"):
        assert point in page.text
    assert "Images/s: training, by the median step, on cpu." in page.text
    assert "| A: r50 | 120.2 (800 × 1088) | 44.4 M | 44.4 M | 17.3 |" in markdown


@pytest.mark.parametrize("second", [R50, None, {**R50, "images_per_second": None}])
def test_detectors_that_cost_the_same_or_do_not_say_are_not_compared(
    second: dict[str, Any] | None, make_row: Any, write_rows: Any, tmp_path: Path
) -> None:
    first = setting(make_row, "r50", R50 if second else None, ap=36.0)
    rows = first + setting(make_row, "other_lr", second, ap=28.0, lr=0.1)
    page, markdown = page_of(write_rows(rows), tmp_path)
    assert not cost_tables(page) and "cost" not in page.text + markdown


@pytest.mark.parametrize("changes", [{"heads": "Res5ROIHeads"}, {"iterations": 200}])
def test_other_heads_and_other_schedules_do_not_compare(
    changes: dict[str, Any], make_row: Any, write_rows: Any, tmp_path: Path
) -> None:
    rows = setting(make_row, "r50", R50, ap=36.0)
    rows += setting(make_row, "small", SMALL, ap=28.0, **changes)
    page, _ = page_of(write_rows(rows), tmp_path)
    assert not cost_tables(page)


def test_a_frozen_backbone_differs_in_what_is_trained_and_has_no_picture(
    make_row: Any, write_rows: Any, tmp_path: Path
) -> None:
    rows = setting(make_row, "full", R50, ap=36.0) + setting(make_row, "frozen", FROZEN, ap=30.0)
    page, _ = page_of(write_rows(rows), tmp_path)
    (table,) = cost_tables(page)
    assert [row[2:] for row in table[1:]] == [
        ["44.4 M", "44.4 M", "17.3"],
        ["44.4 M", "17.0 M", "30.5"],
    ]
    assert charts(page) == []


def test_an_arm_with_another_input_has_a_line_of_its_own_and_older_rows_none(
    make_row: Any, write_rows: Any, tmp_path: Path
) -> None:
    rows = setting(make_row, "r50", R50, ap=36.0)
    for row in rows[2:]:
        row["cost"] = {**R50, "backbone_flops": None}
    rows += setting(make_row, "older", None, ap=30.0)
    (table,) = cost_tables(page_of(write_rows(rows), tmp_path)[0])
    assert [row[:2] for row in table[1:]] == [
        ["A: r50|supervised", "120.2|800 × 1088"],
        ["A: r50|moco", "–|800 × 1088"],
    ]


def test_machines_are_named_where_speeds_were_measured_on_several(
    make_row: Any, write_rows: Any, tmp_path: Path
) -> None:
    gpu = {"hardware": {"device": "H100", "cores": 16}}
    rows = setting(make_row, "r50", R50, ap=36.0)
    rows += setting(make_row, "small", SMALL, ap=28.0, **gpu)
    page, _ = page_of(write_rows(rows), tmp_path)
    (table,) = cost_tables(page)
    assert [row[-1] for row in table[1:]] == ["17.3|cpu", "80.0|H100"]


def test_points_that_are_not_joined_have_no_line_between_them() -> None:
    lines = [Line("moco", 2, [(1.0, 30.0), (9.0, 40.0)])]
    alone = line_chart(lines, "t", "y", joined=False, names={"A": (9.0, 40.0)})
    joined = line_chart(lines, "t", "y")
    assert alone.count('class="dot') == 2 and ">A</text>" in alone
    assert 'class="line' not in alone and joined.count('class="line') == 1


def test_settings_of_one_config_are_told_apart_by_their_networks(
    make_row: Any, write_rows: Any, tmp_path: Path
) -> None:
    rows = []
    for network, cost, ap in (("convnext_atto", R50, 36.0), ("regnety_002", SMALL, 28.0)):
        for row in setting(make_row, "timm", cost, ap=ap):
            row["config"] += f"MODEL.TIMM.NAME: {network}\n"
            rows.append({**row, "run": f"{network}_{row['run']}"})
    page, _ = page_of(write_rows(rows), tmp_path)
    names = [line[0] for line in cost_tables(page)[0][1:]]
    assert names == ["A: timm over convnext_atto", "B: timm over regnety_002"]
    assert "· timm over regnety_002 · " in page.text
