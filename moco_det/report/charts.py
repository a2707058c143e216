"""Charts as inline SVG: no script, no network, colours by class so that a page may be dark.

All text passes through escape(); coordinates are rounded to keep the file small. The classes
(`c0` ... for colours, `axis`, `grid`, `thin`) are defined in the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Points = Sequence[tuple[float, float]]
Span = tuple[float, float]

# A highest 1 % this many times above the rest is a spike, drawn at the frame's edge.
SPIKE = 3.0

# Distinct colours in the style sheet; more arms than this share colours, names tell them apart.
COLOURS = 7

WIDTH, HEIGHT = 390.0, 250.0
# Of the style sheet's letters, and the most that names may take of a chart's width.
FONT, MOST_ROOM = 13.0, 170.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 12.0, 40.0


@dataclass(frozen=True)
class Line:
    """One line: its points, their intervals where there are any, and thin lines of the seeds."""

    label: str
    colour: int
    points: Points
    seeds: Sequence[Points] = ()
    spans: Sequence[Span | None] = ()


@dataclass(frozen=True)
class ChartRow:
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
    level: tuple[str, float] | None = None,
) -> Markup:
    """Lines over the thin lines of their seeds, from zero on; intervals stand side by side.

    A `level` is a dashed line under its name.
    """
    points = [p for line in lines for seed in line.seeds or [line.points] for p in seed]
    if not points:
        return Markup("")
    ends = [end for line in lines for span in line.spans if span for end in span]
    ends += _robust_range([y for _, y in points])
    ends += [level[1]] if level is not None else []
    right = max(max(x for x, _ in points), 1.0)
    right *= 1.06 if any(line.spans for line in lines) else 1.0
    plot = _Plot(right, *_padded(min(ends), max(ends), 0.05))
    parts = [plot.axes(x_label=x_label, y_label=y_label)]
    if level is not None:
        parts.append(plot.level(*level, below=points[-1][1] >= level[1]))
    parts += [
        _path(f"thin c{line.colour}", plot.path(seed)) for line in lines for seed in line.seeds
    ]
    for i, line in enumerate(lines):
        shift = 6.0 * (i - (len(lines) - 1) / 2) if line.spans else 0.0
        if len(line.points) > 1:
            parts.append(_path(f"line c{line.colour}", plot.path(line.points, shift), line.label))
        for (x, _), span in zip(line.points, line.spans, strict=False):
            if span is not None:
                at = plot.x(x) + shift
                ends_at = f"M{at:.1f} {plot.y(span[0]):.1f}V{plot.y(span[1]):.1f}"
                parts.append(_path(f"thin whisker c{line.colour}", ends_at))
        for x, y in line.points if dots or len(line.points) == 1 else ():
            said = f"{line.label}: {_tick(y)} at {_tick(x)}"
            parts.append(_dot(plot.x(x) + shift, plot.y(y), line.colour, said, 3.5))
    return _svg("".join(parts), HEIGHT, title)


def row_chart(
    rows: Sequence[ChartRow], title: str, x_label: str, *, differences: bool = False
) -> Markup:
    """One row per arm or class; the axis covers the data, and zero where they are differences."""
    if not rows:
        return Markup("")
    step, thick, sign = (20.0, 4.0, "+") if differences else (34.0, 12.0, "")
    top, right = 6.0, WIDTH - 34
    bottom = top + step * len(rows)
    left = 12 + min(max(*(text_width(row.label, FONT) for row in rows), 100.0), MOST_ROOM)
    edges = [edge for row in rows for edge in (*row.values, *(row.band or ()), *(row.span or ()))]
    edges += [0.0] if differences else []
    low, high = _padded(min(edges), max(edges), 0.06)

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    parts = []
    for tick in ticks(low, high, 4):
        parts.append(_path("grid", f"M{at(tick):.1f} {top:.1f}V{bottom:.1f}"))
        parts.append(_label(at(tick), bottom + 15, _tick(tick), "mid"))
    parts.append(_label((left + right) / 2, bottom + 33, x_label, "mid axis-name"))
    if differences:
        parts.append(_path("zero", f"M{at(0):.1f} {top:.1f}V{bottom:.1f}"))
    for i, row in enumerate(rows):
        y = top + step * (i + 0.5)
        name = shortened(row.label, FONT, left - 12)
        parts.append(_label(left - 12, y + 4, name, "end", "" if name == row.label else row.label))
        if row.band is not None:
            a, b = map(at, row.band)
            parts.append(
                f'<rect class="band c{row.colour}" x="{a:.1f}" y="{y - 9:.1f}" '
                f'width="{max(b - a, 0.5):.1f}" height="18" rx="3"/>'
            )
        if row.span is not None:
            ends = f"M{at(row.span[0]):.1f} {y:.1f}H{at(row.span[1]):.1f}"
            parts.append(_path(f"thin whisker c{row.colour}", ends))
        for value in row.values:
            parts.append(_dot(at(value), y, row.colour, f"{row.label}: {value:{sign}.2f}"))
        if row.mean is not None:
            bar = f"M{at(row.mean):.1f} {y - thick:.1f}V{y + thick:.1f}"
            parts.append(_path(f"mean c{row.colour}", bar))
    return _svg("".join(parts), bottom + 40, title)


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
    end = len(text)
    while end > 1 and text_width(text[:end], size) + size > room:
        end -= 1
    return text[:end] + "…"


class _Plot:
    """The linear map from data to the drawing's units, and the frame around it; x begins at 0."""

    def __init__(self, x_high: float, y_low: float, y_high: float) -> None:
        self.x_high, self.y_low, self.y_high = x_high, y_low, y_high
        # the numbers stand between the axis and its name, which is turned upright
        widest = max((text_width(_tick(t), FONT) for t in ticks(y_low, y_high, 4)), default=0.0)
        self.left = max(LEFT, round(18.0 + widest + 8.0))

    def x(self, value: float) -> float:
        return self.left + value / self.x_high * (WIDTH - self.left - RIGHT)

    def y(self, value: float) -> float:
        # An outlier beyond the robust range is drawn at the frame, not outside it.
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM)

    def path(self, points: Points, shift: float = 0.0) -> str:
        return "M" + "L".join(f"{self.x(x) + shift:.1f} {self.y(y):.1f}" for x, y in points)

    def level(self, name: str, value: float, *, below: bool) -> str:
        """A dashed line over the whole width, its name at the right end below or above it."""
        y, right = self.y(value), WIDTH - RIGHT
        line = _path("zero", f"M{self.left} {y:.1f}H{right}")
        return line + _label(right, y + (FONT if below else -5), name, "end")

    def axes(self, *, x_label: str, y_label: str) -> str:
        floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        parts = []
        for tick in ticks(self.y_low, self.y_high, 4):
            y = self.y(tick)
            parts.append(_path("grid", f"M{self.left} {y:.1f}H{right}"))
            parts.append(_label(self.left - 6, y + 4, _tick(tick), "end"))
        for tick in ticks(0.0, self.x_high, 4):
            x = self.x(tick)
            place = (min(x, WIDTH - 2), "end") if x > right - 14 else (x, "mid")
            parts.append(_label(place[0], floor + 16, _tick(tick), place[1]))
        parts.append(_path("axis", f"M{self.left} {floor}H{right}"))
        parts.append(_label((self.left + right) / 2, HEIGHT - 6, x_label, "mid axis-name"))
        upright = f'transform="translate(12 {(TOP + floor) / 2:.1f}) rotate(-90)"'
        parts.append(f'<text {upright} class="mid axis-name">{escape(y_label)}</text>')
        return "".join(parts)


def _path(classes: str, path: str, title: str = "") -> str:
    if not title:
        return f'<path class="{classes}" d="{path}"/>'
    return f'<path class="{classes}" d="{path}"><title>{escape(title)}</title></path>'


def _dot(x: float, y: float, colour: int, title: str, radius: float = 4) -> str:
    return (
        f'<circle class="dot c{colour}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
        f"<title>{escape(title)}</title></circle>"
    )


def _label(x: float, y: float, text: str, classes: str, title: str = "") -> str:
    full = f"<title>{escape(title)}</title>" if title else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}">{full}{escape(text)}</text>'


def _svg(body: str, height: float, title: str) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH:g} {height:g}" role="img" '
        f'aria-label="{escape(title)}">{body}</svg>'
    )


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


def _tick(value: float) -> str:
    if abs(value) >= 10000:
        return f"{value / 1000:,.4g}k"
    return f"{value:.4g}".replace("-", "−")
