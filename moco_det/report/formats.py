"""How numbers are written: one decimal of AP, a true minus sign, a dash for the undefined."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote

from moco_det.report.statistics import MOST_SEEDS, Comparison, Trials

UNDEFINED = "–"

# name of a metric in a row -> its name on the page; METRICS are those that COCO's metric gives
METRICS = {"bbox": "box AP", "segm": "mask AP"}
ALL_METRICS = {**METRICS, "voc": "box AP by the VOC metric"}


def number(value: float | None, digits: int = 1) -> str:
    """A number with a true minus sign; never "-0.0"."""
    if value is None:
        return UNDEFINED
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def signed(value: float | None, digits: int = 1) -> str:
    """A difference with its sign; none on zero."""
    text = number(value, digits)
    return f"+{text}" if value is not None and value > 0 and float(text) else text


def mean_std(trials: Trials) -> str:
    """ "31.2 ± 0.4", or the mean alone where one trial has no deviation."""
    if trials.std is None:
        return number(trials.mean)
    return f"{number(trials.mean)} ± {number(trials.std)}"


def interval(comparison: Comparison) -> str:
    """ "[−3.0, +5.8]", or in words why there is none."""
    if comparison.interval is None:
        return comparison.verdict
    low, high = comparison.interval
    return f"[{signed(low)}, {signed(high)}]"


def p_value(p: float | None) -> str:
    """ "0.03", "<0.001", or a dash where there is none."""
    if p is None:
        return UNDEFINED
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def seeds(count: int | None) -> str:
    """ "12", ">1,000", or a dash where no deviation is known."""
    if count is None:
        return UNDEFINED
    return f">{MOST_SEEDS:,}" if count > MOST_SEEDS else f"{count:,}"


def duration(seconds: float) -> str:
    """ "42 s", "3 min 05 s" or "2 h 10 min"."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def scientific(value: float | None) -> str:
    """ "3.6e−06", as the differences of a proof are written; "0" for exact equality."""
    if value is None:
        return UNDEFINED
    return "0" if value == 0 else f"{value:.1e}".replace("-", "−")


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """ "1 run", "2 runs"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def capital(text: str) -> str:
    """The text with a capital first letter; the others stay (AP)."""
    return text[:1].upper() + text[1:]


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def tick(value: float) -> str:
    """ "0.25", "−3", "12k", as the numbers of an axis are written."""
    if abs(value) >= 10000:
        return f"{value / 1000:,.4g}k"
    return f"{value:.4g}".replace("-", "−")


def short_name(dataset: str) -> str:
    """A data set's name for people: of an address, its last folder and its options."""
    if "://" not in dataset:
        return dataset
    path, _, options = dataset.split("://", 1)[1].partition("?")
    parts = [part for part in path.split("/") if part]
    name = unquote(parts[-1]) if parts else dataset
    splits = [unquote(option[6:]) for option in options.split("&") if option.startswith("split=")]
    return f"{name} ({splits[0]})" if splits else name
