"""Charts as inline SVG: no script, no network, colours by class so that a page may be dark.

The marks stand in templates/*.svg.j2; coordinates are rounded to keep the file small. The classes
(`c0` ... for colours, `axis`, `grid`, `thin`) are defined in the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from moco_det.report.document import render
from moco_det.report.formats import tick

Points = Sequence[tuple[float, float]]
Span = tuple[float, float]

# A highest 1 % this many times above the rest is a spike, drawn at the frame's edge.
SPIKE = 3.0

# Distinct colours in the style sheet; more arms than this share colours, names tell them apart.
COLOURS = 7

WIDTH, HEIGHT = 390, 250
# Of the style sheet's letters, and the most that names may take of a chart's width.
FONT, MOST_ROOM = 13.0, 170.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 12.0, 40.0


class Line(NamedTuple):
    """One line: its points, their intervals where there are any, and thin lines of the seeds."""

    label: str
    colour: int
    points: Points
    seeds: Sequence[Points] = ()
    spans: Sequence[Span | None] = ()


class ChartRow(NamedTuple):
    """One row of a row chart: a dot per value, a bar at the mean, a band and an interval."""

    label: str
    colour: int
    values: Sequence[float]
    mean: float | None = None
    band: Span | None = None
    span: Span | None = None


def line_chart(
    lines: Sequence[Line],
    title: str,
    y_label: str,
    x_label: str = "iteration",
    *,
    dots: bool = False,
    joined: bool = True,
    level: tuple[str, float] | None = None,
    names: Mapping[str, tuple[float, float]] | None = None,
) -> Markup:
    """Lines over the thin lines of their seeds, from zero on; intervals stand side by side.

    Points that are not `joined` are alone. A `level` is a dashed line under its name, and `names`
    stand over their points.
    """
    points = [p for line in lines for seed in line.seeds or [line.points] for p in seed]
    if not points:
        return Markup("")
    ends = [end for line in lines for span in line.spans if span for end in span]
    ends += _robust_range([y for _, y in points])
    ends += [level[1]] if level is not None else []
    right = max(max(x for x, _ in points), 1.0)
    right *= 1.06 if any(line.spans for line in lines) else 1.0
    apart = 6.0 if joined else 3.0
    sides = [apart * (i - (len(lines) - 1) / 2) for i in range(len(lines))]
    context = {
        "title": title,
        "x_label": x_label,
        "y_label": y_label,
        "dots": dots or not joined,
        "joined": joined,
        "names": names or {},
        "lines": lines,
        "shifted": [(line, s if line.spans else 0.0) for line, s in zip(lines, sides, strict=True)],
        "level": level,
        "level_below": level is not None and points[-1][1] >= level[1],
        "p": _Plot(right, *_padded(min(ends), max(ends), 0.05)),
    }
    return _drawn("line_chart.svg.j2", context)


def row_chart(
    rows: Sequence[ChartRow], title: str, x_label: str, *, differences: bool = False
) -> Markup:
    """One row per arm or class; the axis covers the data, and zero where they are differences."""
    if not rows:
        return Markup("")
    step, thick = (20.0, 4.0) if differences else (34.0, 12.0)
    top, right = 6.0, WIDTH - 34
    left = 12 + min(max(*(text_width(row.label, FONT) for row in rows), 100.0), MOST_ROOM)
    edges = [edge for row in rows for edge in (*row.values, *(row.band or ()), *(row.span or ()))]
    edges += [0.0] if differences else []
    low, high = _padded(min(edges), max(edges), 0.06)
    context = {
        "title": title,
        "x_label": x_label,
        "differences": differences,
        "rows": [(row, shortened(row.label, FONT, left - 12)) for row in rows],
        "ticks": ticks(low, high, 4),
        "at": lambda value: left + (value - low) / (high - low) * (right - left),
        **{"top": top, "bottom": top + step * len(rows), "left": left, "right": right},
        **{"step": step, "thick": thick},
    }
    return _drawn("row_chart.svg.j2", context)


def _drawn(template: str, context: Mapping[str, Any]) -> Markup:
    return Markup(render(template, {**context, "width": WIDTH, "height": HEIGHT, "font": FONT}))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from low to high."""
    raw = (high - low) / max(count, 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = min((m * magnitude for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(math.log(s / raw)))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def text_width(text: str, size: float) -> float:
    """About the width of a text in the widest of the usual fonts: the page picks the font."""
    wide = sum(character.isupper() for character in text)
    thin = sum(character in " .,:;il|" for character in text)
    return size * (0.72 * wide + 0.34 * thin + 0.62 * (len(text) - wide - thin))


def shortened(text: str, size: float, room: float) -> str:
    """The text, or as much of its beginning as the room holds with an ellipsis after it."""
    if text_width(text, size) <= room:
        return text
    ends = range(len(text) - 1, 1, -1)
    return text[: next((e for e in ends if text_width(text[:e], size) + size <= room), 1)] + "…"


class _Plot:
    """The linear map from data to the drawing's units; x begins at 0."""

    right, floor, middle = WIDTH - RIGHT, HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2

    def __init__(self, x_high: float, y_low: float, y_high: float) -> None:
        self.x_high, self.y_low, self.y_high = x_high, y_low, y_high
        self.x_ticks, self.y_ticks = ticks(0.0, x_high, 4), ticks(y_low, y_high, 4)
        # the numbers stand between the axis and its name, which is turned upright
        widest = max((text_width(tick(t), FONT) for t in self.y_ticks), default=0.0)
        self.left = max(LEFT, round(18.0 + widest + 8.0))

    def x(self, value: float) -> float:
        return self.left + value / self.x_high * (self.right - self.left)

    def y(self, value: float) -> float:
        # An outlier beyond the robust range is drawn at the frame, not outside it.
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return self.floor - min(max(share, 0.0), 1.0) * (self.floor - TOP)

    def path(self, points: Points, shift: float = 0.0) -> str:
        return "M" + "L".join(f"{self.x(x) + shift:.1f} {self.y(y):.1f}" for x, y in points)


def _padded(low: float, high: float, share: float) -> Span:
    if high - low < 1e-9:
        pad = max(abs(low) * 0.05, 0.5)
        return low - pad, high + pad
    return low - share * (high - low), high + share * (high - low)


def _robust_range(values: list[float]) -> Span:
    """The range of the values, without the highest 1 % where they would flatten every line."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    usual = ordered[math.ceil(0.99 * (len(ordered) - 1))]
    if high - low > SPIKE * (usual - low) > 0:
        return low, usual
    return low, high
