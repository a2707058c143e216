"""A setting's arms side by side: AP, how sure the differences are, and class by class."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from moco_det.report.charts import ChartRow, row_chart
from moco_det.report.document import Block, Cell, Figure, Figures, Fold, Table, table_of, text
from moco_det.report.formats import (
    ALL_METRICS,
    METRICS,
    UNDEFINED,
    capital,
    counted,
    interval,
    listed,
    mean_std,
    p_value,
    seeds,
    signed,
)
from moco_det.report.groups import ArmRuns, Group
from moco_det.report.sentences import config_note, say
from moco_det.report.statistics import (
    POWER,
    RULE,
    Comparison,
    Trials,
    compare_paired,
    seeds_needed,
)
from moco_det.results import AP_KEYS

# The differences of which a reader asks how many seeds they would need, in AP.
ASKED = (0.5, 1.0, 2.0)
# Classes in one chart of differences; more cannot be read.
MOST_GAPS = 24
# Tables of classes longer than this are folded.
SHORT = 12


def arm_cell(arm: ArmRuns) -> Cell:
    """An arm's name with its colour."""
    return Cell(arm.label, colour=arm.colour)


def value_cell(
    trials: Trials, comparison: Comparison | None = None, *, counted: bool = False
) -> Cell:
    """ "31.2 ± 0.4" over a difference, "+1.4 [−3.0, +5.8]", or, if `counted`, over "n=3"."""
    if comparison is None or comparison.difference is None:
        return Cell(mean_std(trials), f"n={trials.n}" if counted else "")
    note = f"{signed(comparison.difference)} {interval(comparison)}"
    return Cell(mean_std(trials), note, comparison.tone)


def difference_cell(comparison: Comparison | None) -> Cell:
    """A difference with its interval under it."""
    if comparison is None or comparison.difference is None:
        return Cell(UNDEFINED)
    return Cell(signed(comparison.difference), interval(comparison), comparison.tone)


def ap_tables(group: Group) -> list[Table]:
    """One table per metric."""
    tables = []
    for metric in group.all_metrics:
        what = f"{capital(ALL_METRICS[metric])} by the COCO metric"
        if metric == "voc":
            names = {str(row.metric_table("voc").get("metric", "unnamed")) for row in group.rows}
            what = f"{capital(ALL_METRICS[metric])} ({listed(sorted(names))})"
        tables.append(ap_table(group, metric, AP_KEYS, what))
    return tables


def size_tables(group: Group) -> list[Table]:
    """The APs of small, medium and large objects, where they were measured."""
    keys = ("APs", "APm", "APl")
    return [
        ap_table(group, metric, keys, f"{capital(name)} of small, medium and large objects")
        for metric, name in METRICS.items()
        if any(arm.trials(metric, key).n for arm in group.arms for key in keys)
    ]


def ap_table(group: Group, metric: str, keys: Sequence[str], what: str) -> Table:
    """Arms as rows; mean ± std with the difference to supervised under it, then to random."""
    against_random = group.random is not None and len(group.arms) > 1
    rows = []
    for arm in group.arms:
        row = [arm_cell(arm), arm.trials(metric, keys[0]).n]
        for key in keys:
            gap = group.against(arm, group.supervised, metric, key)
            row.append(value_cell(arm.trials(metric, key), gap))
        if against_random:
            row.append(difference_cell(group.against(arm, group.random, metric, keys[0])))
        rows.append(row)
    header = ["arm", "n", *keys, *([f"{keys[0]} − random"] if against_random else [])]
    caption = say("ap_table", what=what, group=group, config=config_note(group))
    return Table(caption, header, rows)


def strip_charts(group: Group) -> list[Figure]:
    """Every run's AP as a dot, one row per arm."""
    figures = []
    for metric in group.metrics:
        rows = []
        for arm in group.arms:
            found = arm.trials(metric)
            if found.mean is not None:
                band = None if found.std is None else found.band
                rows.append(ChartRow(arm.label, arm.colour, found.values, found.mean, band))
        name = capital(METRICS[metric])
        trials = ", ".join(f"{arm.label} n={arm.trials(metric).n}" for arm in group.arms)
        if rows:
            svg = row_chart(rows, f"{name} of every run", f"{name}, percent")
            caption = say("strip", name=name, trials=trials, group=group)
            figures.append(Figure(name, svg, caption))
    return figures


def certainty_table(group: Group) -> Table | None:
    """One line per comparison with supervised and with random; None where nothing is compared."""
    body, sizes = [], " / ".join(f"{size:g}" for size in ASKED)
    references = [one for one in (group.supervised, group.random) if one is not None]
    for reference, arm, metric in product(references, group.arms, group.metrics):
        gap = group.against(arm, reference, metric)
        # supervised against random stands there the other way round
        if gap is None or gap.difference is None or arm is group.supervised:
            continue
        if gap.verdict == "nothing learned":
            continue
        runs = ({row.trial: row.metric(metric, "AP") for row in a.rows} for a in (arm, reference))
        paired, shared = compare_paired(*runs), Cell(UNDEFINED, "no shared seeds")
        if paired.difference is not None:
            found = f"{interval(paired)}, {counted(paired.n, 'pair')}"
            shared = Cell(signed(paired.difference), found)
        needed = [seeds_needed(size, gap.deviation) for size in ASKED]
        corrected = f"corrected {p_value(gap.p_holm)}" if gap.family > 1 else ""
        compared = f"{METRICS[metric]}, {gap.trials}"
        line = {
            "comparison": Cell(f"{arm.label} − {reference.label}", compared),
            "in words": gap.verdict,
            "difference": difference_cell(gap),
            "p": Cell(p_value(gap.p), corrected),
            "paired": shared,
            f"seeds for {sizes} AP": " / ".join(map(seeds, needed)),
        }
        body.append(line)
    note = config_note(group)
    facts = {"rule": RULE, "sizes": sizes, "power": POWER, "config": note}
    caption = say("certainty", group=group, **facts)
    return table_of(caption, body, words=2) if body else None


def class_blocks(group: Group, *, alone: bool) -> list[Block]:
    """Charts of the classes' differences, and a table per metric; `alone` on the page or not."""
    gaps = _class_charts(group)
    blocks: list[Block] = [Figures(gaps)] if gaps else []
    measured = [m for m in group.all_metrics if any(row.per_class(m) for row in group.rows)]
    for i, table in enumerate(class_table(group, metric) for metric in measured):
        short = len(table.rows) <= SHORT and alone
        summary = f"{table.caption.split(',')[0]}: {len(table.rows)} classes"
        blocks.append(table if short and i == 0 else Fold(summary, [table], open=short))
    return blocks if measured else [text("No run recorded the AP of single classes.")]


def class_table(group: Group, metric: str) -> Table:
    """Classes as rows in the data's order, arms as columns."""
    known = {name for row in group.rows for name in row.per_class(metric)}
    classes = [name for name in group.data["dataset"]["classes"] if name in known]
    classes += sorted(known - set(classes))
    rows = []
    for name in classes:
        gaps = [group.class_gap(arm, metric, name) for arm in group.arms]
        trials = [arm.class_trials(metric, name) for arm in group.arms]
        rows.append([name, *map(value_cell, trials, gaps)])
    counts = ", ".join(f"{arm.label} {len(arm.rows)}" for arm in group.arms)
    what = METRICS.get(metric, "VOC AP").replace("AP", "AP of each class")
    caption = say("class_table", what=what, trials=counts, config=config_note(group))
    return Table(caption, ("class", *(arm.label for arm in group.arms)), rows)


def _class_charts(group: Group) -> list[Figure]:
    """Each arm on trial minus supervised, class by class, largest gain first."""
    reference, figures = group.supervised, []
    for arm in group.on_trial if reference is not None and group.metrics else ():
        metric, rows = group.metrics[0], []
        for category in sorted({name for row in arm.rows for name in row.per_class(metric)}):
            gap = group.class_gap(arm, metric, category)
            if gap is not None and gap.difference is not None:
                rows.append(ChartRow(category, arm.colour, [gap.difference], span=gap.interval))
        rows.sort(key=lambda row: -row.values[0])
        name = METRICS[metric]
        facts = {"arm": arm, "reference": reference, "config_name": group.data["config_name"]}
        caption = say("class_chart", name=capital(name), classes=len(rows), most=MOST_GAPS, **facts)
        if len(rows) > MOST_GAPS:
            del rows[MOST_GAPS // 2 : -(MOST_GAPS // 2)]
        title, axis = f"{name} of {arm.label} minus supervised", f"{name}, difference"
        if rows and reference is not None:
            svg = row_chart(rows, title, axis, differences=True)
            figures.append(Figure(f"{arm.label} − {reference.label}", svg, caption))
    return figures
