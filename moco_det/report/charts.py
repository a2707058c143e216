"""Charts as inline SVG: no script, no network, colours by class so that a page may be dark.

All text passes through escape(); coordinates are rounded to keep the file small. The classes
(`c0` ... for colours, `axis`, `grid`, `thin`) are defined in the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from moco_det.report.curves import ArmCurve, Points
from moco_det.report.labels import shortened, text_width
from moco_det.report.statistics import Comparison

# A highest 1 % this many times above the rest is a spike, drawn at the frame's edge.
SPIKE = 3.0

# Distinct colours in the style sheet; more arms than this share colours, names tell them apart.
COLOURS = 7

# Classes in one chart of differences; more cannot be read.
MOST_GAPS = 24

WIDTH, HEIGHT = 390.0, 250.0
# Of the style sheet's letters, and the most that names may take of a chart's width.
FONT, MOST_ROOM = 13.0, 170.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 12.0, 40.0


@dataclass(frozen=True)
class Figure:
    """A chart and its caption."""

    title: str
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Strip:
    """One line of a strip chart: a dot a trial, a bar at the mean, a band of one std."""

    label: str
    colour: int
    values: tuple[float, ...]
    mean: float
    std: float | None


def line_chart(
    curves: Sequence[tuple[ArmCurve, int]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    dots: bool = False,
    thin: bool = True,
    level: tuple[str, float] | None = None,
) -> Markup:
    """Mean lines over thin lines of the seeds; `curves` pairs each with its colour's number.

    The horizontal axis starts at iteration 0. A `level` is a dashed line under its name.
    """
    points = [p for curve, _ in curves for seed in curve.seeds for p in seed]
    if not points:
        return Markup("")
    x_low, x_high = 0.0, max(max(x for x, _ in points), 1.0)
    low, high = _robust_range([y for _, y in points])
    if level is not None:
        low, high = min(low, level[1]), max(high, level[1])
    plot = _Plot(x_low, x_high, *_padded(low, high, 0.05))
    parts = [plot.axes(x_label=x_label, y_label=y_label)]
    if level is not None:
        parts.append(plot.level(*level, below=points[-1][1] >= level[1]))
    for curve, colour in curves if thin else ():
        for seed in curve.seeds:
            parts.append(f'<path class="thin c{colour % COLOURS}" d="{plot.path(seed)}"/>')
    for curve, colour in curves:
        text = escape(f"{curve.label}, mean of {len(curve.seeds)}")
        if len(curve.mean) > 1:
            parts.append(
                f'<path class="line c{colour % COLOURS}" d="{plot.path(curve.mean)}">'
                f"<title>{text}</title></path>"
            )
        if dots or len(curve.mean) == 1:
            for x, y in curve.mean:
                label = escape(f"{curve.label}: {_tick(y)} at {_tick(x)} (mean)")
                parts.append(
                    f'<circle class="dot c{colour % COLOURS}" cx="{plot.x(x):.1f}" '
                    f'cy="{plot.y(y):.1f}" r="3.5"><title>{label}</title></circle>'
                )
    return _svg("".join(parts), WIDTH, HEIGHT, title)


def strip_chart(strips: Sequence[Strip], *, title: str, x_label: str) -> Markup:
    """Every trial as a dot, one line an arm; the axis covers the data, not zero."""
    if not strips:
        return Markup("")
    row, top = 34.0, 6.0
    widest = max(text_width(strip.label, FONT) for strip in strips)
    left = 12 + min(max(widest, 92.0), MOST_ROOM)
    height = top + row * len(strips) + 40
    spread = [v for s in strips for v in (*s.values, s.mean - (s.std or 0), s.mean + (s.std or 0))]
    low, high = _padded(min(spread), max(spread), 0.08)
    bottom = top + row * len(strips)

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - left - 34)

    parts = []
    for tick in ticks(low, high, 4):
        x = at(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 15:.1f}" class="mid">{_tick(tick)}</text>')
    parts.append(
        f'<text x="{(left + WIDTH - 34) / 2:.1f}" y="{bottom + 33:.1f}" class="mid axis-name">'
        f"{escape(x_label)}</text>"
    )
    for i, strip in enumerate(strips):
        y = top + row * (i + 0.5)
        colour = strip.colour % COLOURS
        name = escape(shortened(strip.label, FONT, left - 12))
        full = f"<title>{escape(strip.label)}</title>" if name != escape(strip.label) else ""
        parts.append(f'<text x="{left - 12:.1f}" y="{y + 4:.1f}" class="end">{full}{name}</text>')
        if strip.std is not None:
            a, b = at(strip.mean - strip.std), at(strip.mean + strip.std)
            parts.append(
                f'<rect class="band c{colour}" x="{a:.1f}" y="{y - 9:.1f}" '
                f'width="{max(b - a, 0.5):.1f}" height="18" rx="3"/>'
            )
        for value in strip.values:
            label = escape(f"{strip.label}: {value:.2f}")
            parts.append(
                f'<circle class="dot c{colour}" cx="{at(value):.1f}" cy="{y:.1f}" r="4">'
                f"<title>{label}</title></circle>"
            )
        x = at(strip.mean)
        parts.append(f'<path class="mean c{colour}" d="M{x:.1f} {y - 12:.1f}V{y + 12:.1f}"/>')
    return _svg("".join(parts), WIDTH, height, title)


@dataclass(frozen=True)
class Gain:
    """A value or a difference in one setting, and its interval where there is one."""

    x: float
    value: float
    low: float | None
    high: float | None


def gain_chart(
    lines: Sequence[tuple[str, int, Sequence[Gain]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    sign: str = "+",
) -> Markup:
    """Values against the size of a setting, one line per (label, colour, gains); zero is drawn.

    `sign` is how a value's sign is written: "+" for differences, "" for plain values.
    """
    gains = [gain for _, _, of_line in lines for gain in of_line]
    if not gains:
        return Markup("")
    edges = [edge for g in gains for edge in (g.value, g.low, g.high) if edge is not None]
    low, high = _padded(min(0.0, *edges), max(0.0, *edges), 0.06)
    plot = _Plot(0.0, max(g.x for g in gains) * 1.06, low, high)
    parts = [plot.axes(x_label=x_label, y_label=y_label)]
    parts.append(f'<path class="zero" d="M{LEFT} {plot.y(0):.1f}H{WIDTH - RIGHT}"/>')
    shift = 6.0  # intervals of one schedule stand side by side
    for i, (label, colour, of_line) in enumerate(lines):
        offset = (i - (len(lines) - 1) / 2) * shift
        places = [(plot.x(g.x) + offset, g) for g in of_line]
        path = "L".join(f"{x:.1f} {plot.y(g.value):.1f}" for x, g in places)
        parts.append(f'<path class="line c{colour % COLOURS}" d="M{path}"/>')
        for x, gain in places:
            if gain.low is not None and gain.high is not None:
                parts.append(
                    f'<path class="thin whisker c{colour % COLOURS}" '
                    f'd="M{x:.1f} {plot.y(gain.low):.1f}V{plot.y(gain.high):.1f}"/>'
                )
            text = escape(f"{label}: {gain.value:{sign}.2f} at {_tick(gain.x)}")
            parts.append(
                f'<circle class="dot c{colour % COLOURS}" cx="{x:.1f}" '
                f'cy="{plot.y(gain.value):.1f}" r="4"><title>{text}</title></circle>'
            )
    return _svg("".join(parts), WIDTH, HEIGHT, title)


def gap_chart(
    gaps: Sequence[tuple[str, Comparison]], colour: int, *, title: str, x_label: str
) -> Markup:
    """A dot a class at its difference, its interval as a line; zero is drawn.

    Of more than MOST_GAPS classes the middle ones are left out.
    """
    if len(gaps) > MOST_GAPS:
        half = MOST_GAPS // 2
        gaps = [*gaps[:half], *gaps[-half:]]
    shown = [(name, gap) for name, gap in gaps if gap.difference is not None]
    if not shown:
        return Markup("")
    row, top = 20.0, 4.0
    widest = max(text_width(name, FONT) for name, _ in shown)
    left = 10 + min(max(widest, 108.0), MOST_ROOM)
    edges = [e for _, gap in shown for e in (gap.difference, gap.low, gap.high) if e is not None]
    low, high = _padded(min(0.0, *edges), max(0.0, *edges), 0.05)
    bottom = top + row * len(shown)

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - left - 18)

    parts = []
    for tick in ticks(low, high, 4):
        x = at(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 15:.1f}" class="mid">{_tick(tick)}</text>')
    parts.append(f'<path class="zero" d="M{at(0):.1f} {top:.1f}V{bottom:.1f}"/>')
    for i, (name, gap) in enumerate(shown):
        y = top + row * (i + 0.5)
        short = shortened(name, FONT, left - 10)
        parts.append(
            f'<text x="{left - 10:.1f}" y="{y + 4:.1f}" class="end">{escape(short)}</text>'
        )
        if gap.low is not None and gap.high is not None:
            parts.append(
                f'<path class="thin whisker c{colour % COLOURS}" '
                f'd="M{at(gap.low):.1f} {y:.1f}H{at(gap.high):.1f}"/>'
            )
        text = escape(f"{name}: {gap.difference:+.2f}")
        parts.append(
            f'<circle class="dot c{colour % COLOURS}" cx="{at(gap.difference or 0.0):.1f}" '
            f'cy="{y:.1f}" r="4"><title>{text}</title></circle>'
        )
    parts.append(
        f'<text x="{(left + WIDTH - 18) / 2:.1f}" y="{bottom + 33:.1f}" class="mid axis-name">'
        f"{escape(x_label)}</text>"
    )
    return _svg("".join(parts), WIDTH, bottom + 40, title)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from low to high."""
    raw = (high - low) / max(count, 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = min((m * magnitude for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(math.log(s / raw)))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


class _Plot:
    """The linear map from data to the drawing's units, and the frame around it."""

    def __init__(self, x_low: float, x_high: float, y_low: float, y_high: float) -> None:
        self.x_low, self.x_high, self.y_low, self.y_high = x_low, x_high, y_low, y_high
        # the numbers stand between the axis and its name, which is turned upright
        widest = max((text_width(_tick(t), FONT) for t in ticks(y_low, y_high, 4)), default=0.0)
        self.left = max(LEFT, round(18.0 + widest + 8.0))

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return self.left + share * (WIDTH - self.left - RIGHT)

    def y(self, value: float) -> float:
        # An outlier beyond the robust range is drawn at the frame, not outside it.
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM)

    def path(self, points: Points) -> str:
        return "M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)

    def level(self, name: str, value: float, *, below: bool) -> str:
        """A dashed line over the whole width, its name at the right end below or above it."""
        y, right = self.y(value), WIDTH - RIGHT
        return (
            f'<path class="zero" d="M{self.left} {y:.1f}H{right}"/>'
            f'<text x="{right}" y="{y + (FONT if below else -5):.1f}" class="end">'
            f"{escape(name)}</text>"
        )

    def axes(self, *, x_label: str, y_label: str) -> str:
        parts = []
        floor = HEIGHT - BOTTOM
        for tick in ticks(self.y_low, self.y_high, 4):
            y = self.y(tick)
            parts.append(f'<path class="grid" d="M{self.left} {y:.1f}H{WIDTH - RIGHT}"/>')
            text = f'<text x="{self.left - 6}" y="{y + 4:.1f}" class="end">{_tick(tick)}</text>'
            parts.append(text)
        for tick in ticks(self.x_low, self.x_high, 4):
            x = self.x(tick)
            anchor = "end" if x > WIDTH - RIGHT - 14 else "mid"
            x = min(x, WIDTH - 2) if anchor == "end" else x
            parts.append(
                f'<text x="{x:.1f}" y="{floor + 16:.1f}" class="{anchor}">{_tick(tick)}</text>'
            )
        parts.append(f'<path class="axis" d="M{self.left} {floor}H{WIDTH - RIGHT}"/>')
        centre = (self.left + WIDTH - RIGHT) / 2
        parts.append(
            f'<text x="{centre:.1f}" y="{HEIGHT - 6}" class="mid axis-name">'
            f"{escape(x_label)}</text>"
        )
        middle = (TOP + floor) / 2
        parts.append(
            f'<text transform="translate(12 {middle:.1f}) rotate(-90)" class="mid axis-name">'
            f"{escape(y_label)}</text>"
        )
        return "".join(parts)


def _svg(body: str, width: float, height: float, title: str) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(title)}">{body}</svg>'
    )


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    if high - low < 1e-9:
        pad = max(abs(low) * 0.05, 0.5)
        return low - pad, high + pad
    return low - share * (high - low), high + share * (high - low)


def _robust_range(values: list[float]) -> tuple[float, float]:
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
