"""How sure the differences are: intervals, corrected p-values, pairs, and the seeds they need."""

from __future__ import annotations

from collections.abc import Sequence

from moco_det.report.formats import UNDEFINED, counted, interval, p_value, seeds, signed
from moco_det.report.groups import Arm, Group
from moco_det.report.statistics import CONFIDENCE, POWER, Comparison, seeds_needed
from moco_det.report.tables import Cell, Table, config_note, difference
from moco_det.report.verdict import RULERS

# The differences of which a reader asks how many seeds they would need, in AP.
ASKED = (0.5, 1.0, 2.0)


def certainty_table(group: Group, rulers: Sequence[str]) -> Table | None:
    """A line a comparison with supervised and with random; None where nothing is compared."""
    body = []
    for reference in (group.supervised, group.random):
        if reference is None:
            continue
        for arm in group.arms:
            for ruler in rulers:
                comparison = group.against(arm, reference, ruler, "AP")
                if comparison is None or comparison.difference is None:
                    continue
                if reference is group.random and arm is group.supervised:
                    continue  # the same pair stands above the other way round
                body.append(_line(group, arm, reference, ruler, comparison))
    if not body:
        return None
    level = f"{100 * CONFIDENCE:.0f} %"
    family = len(group.on_trial)
    correction = f"corrected: Holm's, over the {family} arms on trial; " if family > 1 else ""
    sizes = " / ".join(f"{size:g}" for size in ASKED)
    return Table(
        caption=f"Differences in AP with Welch's {level} interval and its two-sided p; "
        f"{correction}paired: the mean difference over shared seeds with the paired t interval; "
        "seeds needed: an arm, for a two-sided t test at "
        f"{100 * (1 - CONFIDENCE):.0f} % to find a true difference of {sizes} AP with power "
        f"{POWER:g} at the measured deviation. {config_note(group)}",
        header=("comparison", "in words", "difference", "p", "paired", f"seeds for {sizes} AP"),
        rows=tuple(body),
        words=2,
    )


def _line(
    group: Group, arm: Arm, reference: Arm, ruler: str, comparison: Comparison
) -> tuple[Cell, ...]:
    _, tone = difference(comparison)
    paired = group.paired(arm, reference, ruler, "AP")
    ours, theirs = arm.summary(ruler, "AP"), reference.summary(ruler, "AP")
    pairs = Cell(UNDEFINED, "no shared seeds")
    if paired.difference is not None:
        pairs = Cell(signed(paired.difference), f"{interval(paired)}, {counted(paired.n, 'pair')}")
    corrected = "" if comparison.family < 2 else f"corrected {p_value(comparison.p_holm)}"
    return (
        Cell(f"{arm.label} − {reference.label}", f"{RULERS[ruler]}, {comparison.trials}"),
        Cell(comparison.verdict),
        Cell(signed(comparison.difference), interval(comparison), tone),
        Cell(p_value(comparison.p), corrected),
        pairs,
        Cell(" / ".join(seeds(seeds_needed(size, ours, theirs)) for size in ASKED)),
    )
