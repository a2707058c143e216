"""A setting's arms side by side: AP, how sure the differences are, and class by class."""

from __future__ import annotations

from collections.abc import Sequence

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
from moco_det.report.statistics import CONFIDENCE, POWER, Comparison, Trials, compare, seeds_needed
from moco_det.results import AP_KEYS

# The differences of which a reader asks how many seeds they would need, in AP.
ASKED = (0.5, 1.0, 2.0)
# Classes in one chart of differences; more cannot be read.
MOST_GAPS = 24
# Tables of classes longer than this are folded.
SHORT = 12


def config_note(group: Group) -> str:
    """The end of every caption: which config, for how long, on what."""
    data = group.data
    return (
        f"Config {data['config_name']}, {data['iterations']:,} iterations, "
        f"{data['engine']['name']}, {data['precision']}."
    )


def arm_cell(arm: ArmRuns) -> Cell:
    """An arm's name with its colour."""
    return Cell(arm.label, colour=arm.colour)


def tone_of(comparison: Comparison) -> str:
    """How a difference looks."""
    return {"higher": "gain", "lower": "loss"}.get(comparison.verdict, "")


def value_cell(
    trials: Trials, comparison: Comparison | None = None, *, counted: bool = False
) -> Cell:
    """ "31.2 ± 0.4" over a difference, "+1.4 [−3.0, +5.8]", or, if `counted`, over "n=3"."""
    if comparison is None or comparison.difference is None:
        return Cell(mean_std(trials), f"n={trials.n}" if counted else "")
    note = f"{signed(comparison.difference)} {interval(comparison)}"
    return Cell(mean_std(trials), note, tone_of(comparison))


def difference_cell(comparison: Comparison | None) -> Cell:
    """A difference with its interval under it."""
    if comparison is None or comparison.difference is None:
        return Cell(UNDEFINED)
    return Cell(signed(comparison.difference), interval(comparison), tone_of(comparison))


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
    supervised, many = group.supervised, len(group.on_trial)
    against_random = group.random is not None and len(group.arms) > 1
    rows = []
    for arm in group.arms:
        row = [arm_cell(arm), arm.trials(metric, keys[0]).n]
        for key in keys:
            gap = group.against(arm, supervised, metric, key)
            row.append(value_cell(arm.trials(metric, key), gap))
        if against_random:
            row.append(difference_cell(group.against(arm, group.random, metric, keys[0])))
        rows.append(row)
    caption = f"{what}, percent: mean ± sample standard deviation over n seeds"
    if supervised is not None and len(group.arms) > 1:
        caption += (
            f"; under it the difference to {supervised.label} with Welch's 95 % interval, in "
            "colour where that is beyond noise"
        )
        caption += f" after Holm's correction over the {many} arms on trial" if many > 1 else ""
    elif supervised is None:
        caption += "; no single supervised arm to compare with"
    header = ["arm", "n", *keys, *([f"{keys[0]} − random"] if against_random else [])]
    return Table(f"{caption}. {config_note(group)}", header, rows)


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
        caption = (
            f"{name} of every run (dots), the mean (bar) and one sample standard deviation "
            f"either way (band); {trials}; config {group.data['config_name']}. The axis does not "
            "start at zero."
        )
        if rows:
            svg = row_chart(rows, f"{name} of every run", f"{name}, percent")
            figures.append(Figure(name, svg, caption))
    return figures


def certainty_table(group: Group) -> Table | None:
    """One line per comparison with supervised and with random; None where nothing is compared."""
    body, sizes = [], " / ".join(f"{size:g}" for size in ASKED)
    pairs = [
        (arm, reference) for reference in (group.supervised, group.random) for arm in group.arms
    ]
    for arm, reference in pairs:
        if reference is None or (reference is group.random and arm is group.supervised):
            continue  # the same pair stands above the other way round
        for metric in group.metrics:
            gap, paired = (
                group.against(arm, reference, metric),
                group.paired(arm, reference, metric),
            )
            if gap is None or gap.difference is None:
                continue
            shared = Cell(UNDEFINED, "no shared seeds")
            if paired.difference is not None:
                found = f"{interval(paired)}, {counted(paired.n, 'pair')}"
                shared = Cell(signed(paired.difference), found)
            trials = arm.trials(metric), reference.trials(metric)
            corrected = f"corrected {p_value(gap.p_holm)}" if gap.family > 1 else ""
            line = {
                "comparison": Cell(
                    f"{arm.label} − {reference.label}", f"{METRICS[metric]}, {gap.trials}"
                ),
                "in words": gap.verdict,
                "difference": difference_cell(gap),
                "p": Cell(p_value(gap.p), corrected),
                "paired": shared,
                f"seeds for {sizes} AP": " / ".join(
                    seeds(seeds_needed(size, *trials)) for size in ASKED
                ),
            }
            body.append(line)
    family = len(group.on_trial)
    correction = f"corrected: Holm's, over the {family} arms on trial; " if family > 1 else ""
    caption = (
        f"Differences in AP with Welch's {100 * CONFIDENCE:.0f} % interval and its two-sided p; "
        f"{correction}paired: the mean difference over shared seeds with the paired t interval; "
        "seeds needed: per arm, for a two-sided t test at "
        f"{100 * (1 - CONFIDENCE):.0f} % to find a true difference of {sizes} AP with power "
        f"{POWER:g} at the measured deviation. {config_note(group)}"
    )
    return table_of(caption, body, words=2) if body else None


def class_blocks(group: Group, *, alone: bool) -> list[Block]:
    """Charts of the classes' differences, and a table per metric; `alone` on the page or not."""
    gaps = _class_charts(group)
    blocks: list[Block] = [Figures(gaps)] if gaps else []
    tables = [
        class_table(group, metric)
        for metric in group.all_metrics
        if any(row.per_class(metric) for row in group.rows)
    ]
    for i, table in enumerate(tables):
        short = len(table.rows) <= SHORT and alone
        summary = f"{table.caption.split(',')[0]}: {len(table.rows)} classes"
        blocks.append(table if short and i == 0 else Fold(summary, [table], open=short))
    return blocks if tables else [text("No run recorded the AP of single classes.")]


def class_table(group: Group, metric: str) -> Table:
    """Classes as rows in the data's order, arms as columns."""
    known = {name for row in group.rows for name in row.per_class(metric)}
    classes = [name for name in group.data["dataset"]["classes"] if name in known]
    classes += sorted(known - set(classes))
    columns = [
        [
            value_cell(arm.class_trials(metric, name), _class_gap(group, arm, metric, name))
            for name in classes
        ]
        for arm in group.arms
    ]
    trials = ", ".join(f"{arm.label} {len(arm.rows)}" for arm in group.arms)
    what = METRICS.get(metric, "VOC AP").replace("AP", "AP of each class")
    return Table(
        f"{capital(what)}, percent: mean ± sample standard deviation; under it the difference to "
        "supervised with Welch's 95 % interval, in colour where it excludes zero, not corrected "
        f"for the number of classes. n: {trials}. {config_note(group)}",
        ("class", *(arm.label for arm in group.arms)),
        list(zip(classes, *columns, strict=True)),
    )


def _class_gap(group: Group, arm: ArmRuns, metric: str, category: str) -> Comparison | None:
    """An arm minus supervised in the AP of one class."""
    if group.supervised is None or group.supervised is arm:
        return None
    theirs = group.supervised.class_trials(metric, category)
    return compare(arm.class_trials(metric, category), theirs)


def _class_charts(group: Group) -> list[Figure]:
    """Each arm on trial minus supervised, class by class, largest gain first."""
    reference, figures = group.supervised, []
    if reference is None or not group.metrics:
        return []
    metric = group.metrics[0]
    for arm in group.on_trial:
        rows = []
        for category in sorted({name for row in arm.rows for name in row.per_class(metric)}):
            gap = _class_gap(group, arm, metric, category)
            if gap is not None and gap.difference is not None:
                rows.append(ChartRow(category, arm.colour, [gap.difference], span=gap.interval))
        rows.sort(key=lambda row: -row.values[0])
        name = METRICS[metric]
        caption = (
            f"{capital(name)} of {arm.label} (n={len(arm.rows)}) minus {reference.label} "
            f"(n={len(reference.rows)}) by class, with Welch's 95 % intervals, not corrected; "
            f"config {group.data['config_name']}."
        )
        if len(rows) > MOST_GAPS:
            caption += f" The {MOST_GAPS} largest of {len(rows)} either way."
            del rows[MOST_GAPS // 2 : -(MOST_GAPS // 2)]
        title, axis = f"{name} of {arm.label} minus supervised", f"{name}, difference"
        if rows:
            svg = row_chart(rows, title, axis, differences=True)
            figures.append(Figure(f"{arm.label} − {reference.label}", svg, caption))
    return figures
