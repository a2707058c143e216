"""Curves, axes and charts."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from html import unescape
from pathlib import Path

import pytest
from markupsafe import escape

from moco_det.report.charts import FONT, ChartRow, line_chart, row_chart, text_width, ticks
from moco_det.report.training import mean_line, read_log, series, thin


def test_metrics_skip_what_is_torn_or_not_finite_and_keep_the_last_of_an_iteration(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"iteration": 0, "total_loss": 3.0}\n'
        '{"iteration": 20, "total_loss": NaN, "bbox/AP": 5.0}\n'
        '{"iteration": 0, "total_loss": 2.0, "note": "x", "flag": true}\n'
        "[]\n"
        '{"total_loss": 1.0}\n'
        '{"iteration": 40, "tot',
        encoding="utf-8",
    )
    log = read_log(path)
    assert log is not None and len(log) == 3
    assert series(log, "total_loss") == [(0.0, 2.0)] and series(log, "bbox/AP") == [(20.0, 5.0)]
    assert series(log, "note") == series(log, "flag") == []
    assert read_log(tmp_path / "gone.jsonl") is None


def test_the_mean_line_runs_only_where_every_seed_has_a_value() -> None:
    curve = mean_line("moco", 0, [[(0, 1.0), (1, 3.0), (2, 9.0)], [(0, 3.0), (1, 5.0)], []])
    assert curve is not None
    assert curve.points == [(0, 2.0), (1, 4.0)]
    assert len(curve.seeds) == 2
    assert not mean_line("moco", 0, [[], []]).seeds


def test_thinning_averages_neighbours_and_keeps_the_overall_mean() -> None:
    points = [(float(i), float(i % 2)) for i in range(1000)]
    (thinned,) = thin([points], limit=50)
    assert len(thinned) == 50
    assert sum(y for _, y in thinned) / 50 == pytest.approx(0.5, abs=0.01)
    assert thin([points[:10]], limit=50) == [points[:10]]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (29.7, 30.1), (0.0, 90_000.0), (-5.0, 5.0)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    made = ticks(low, high, 4)
    assert 2 <= len(made) <= 8
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in made)


def test_charts_are_well_formed_and_escape_names() -> None:
    name = '<script>alert("x")</script>'
    curve = mean_line(name, 0, [[(0, 1.0), (10, 2.0)], [(0, 1.5), (10, 2.5)]])
    assert curve is not None
    drawn = [
        line_chart([curve], name, name, "iteration", dots=True),
        row_chart([ChartRow(name, 0, (1.0, 1.0), 1.0, (1.0, 1.0))], name, name),
    ]
    for svg in drawn:
        ET.fromstring(svg)
        assert "<script" not in svg
        assert "nan" not in svg.lower().replace("dominant", "")


def test_a_flat_curve_of_one_point_is_drawn() -> None:
    curve = mean_line("moco", 0, [[(0, 0.0)]])
    assert curve is not None
    svg = line_chart([curve], "t", "y", "x")
    assert "<circle" in svg
    ET.fromstring(svg)


def test_nothing_to_draw_draws_nothing() -> None:
    assert line_chart([], "t", "y", "x") == ""


def test_numbers_on_the_upright_axis_end_where_its_name_begins() -> None:
    curve = mean_line("moco", 0, [[(0, 0.0051), (1, 0.0224)]])
    assert curve is not None
    svg = line_chart([curve], "t", "y", "x")
    texts = re.findall(r'<text x="([\d.]+)" y="[\d.]+" class="end">(0\.\d+)<', svg)
    assert "0.015" in {text for _, text in texts}
    assert all(float(end) - text_width(text, FONT) >= 18 for end, text in texts)
    assert row_chart([], "t", "x") == ""


def test_one_spike_does_not_flatten_the_curve(tmp_path: Path) -> None:
    usual = [(float(i), 1.0 + i / 1000) for i in range(119)]
    curve = mean_line("moco", 0, [[*usual, (119.0, 1e6)]])
    assert curve is not None
    svg = line_chart([curve], "t", "y", "x")
    heights = {point.split()[1] for point in ET.fromstring(svg)[-1].attrib["d"][1:].split("L")}
    assert len(heights) > 50
    assert json.dumps(sorted(heights))


def test_the_last_of_few_evaluations_is_drawn_at_its_height() -> None:
    curve = mean_line("moco", 0, [[(50.0, 1.2), (100.0, 2.8), (150.0, 6.4)]])
    assert curve is not None
    svg = line_chart([curve], "t", "y", "x")
    path = ET.fromstring(svg)[-1].attrib["d"]
    first, second, last = (float(point.split()[1]) for point in path[1:].split("L"))
    assert (first - second) / (first - last) == pytest.approx(1.6 / 5.2, abs=0.01)


@pytest.mark.parametrize("name", ["<script>alert(1)", "W" * 300, "moco_v2_800ep_imagenet1k"])
def test_names_beside_a_chart_end_inside_it(name: str) -> None:
    rows = [ChartRow(name, 0, (1.0, 2.0), 1.5, (0.8, 2.2), (0.5, 2.5))]
    drawn = row_chart(rows, "t", "x")
    drawn += row_chart(rows, "t", "x", differences=True)
    found = re.findall(
        r'<text x="([\d.]+)"[^>]*class="end">(?:<title>.*?</title>)?(.*?)</text>', drawn
    )
    assert len(found) == 2
    for x, shown in found:
        text = unescape(shown)
        # the text ends at x; its letters are the style sheet's
        assert text_width(text.rstrip("…"), FONT) <= float(x)
        assert name.startswith(text.rstrip("…"))
    assert escape(name) in drawn  # in full for who points at it
