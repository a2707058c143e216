"""The page's content: from rows to sections, once, for both the html and the markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from moco_det.foundation.errors import InputError
from moco_det.report import charts
from moco_det.report.against_papers import papers_sentence, papers_tables
from moco_det.report.beside_probes import beside_table
from moco_det.report.between import Between
from moco_det.report.certainty import certainty_table
from moco_det.report.charts import Figure
from moco_det.report.curves import ArmCurve, Points, arm_curve, read_metrics
from moco_det.report.formats import counted, listed, sentence
from moco_det.report.groups import Group, apart_because, arm_rank, group_rows, short_name
from moco_det.report.label_counts import label_families
from moco_det.report.pretraining import PretrainingRun, learning_sentences, read_run
from moco_det.report.probes import (
    ProbeGroup,
    ProbeSection,
    group_probes,
    probe_run_table,
    probe_warnings,
    section,
)
from moco_det.report.samples import Samples, draw_samples, rule
from moco_det.report.schedules import Family, schedule_families
from moco_det.report.tables import (
    Table,
    ap_table,
    class_gaps,
    class_table,
    environment_table,
    failure_table,
    matched_table,
    proof_table,
    run_table,
    setting_name,
    warnings_of,
)
from moco_det.report.verdict import RULERS, Sentence, verdict
from moco_det.results import Rows

# Pictures are drawn for the first settings only: the file must stay small enough to send.
PICTURE_BYTES = 1_900_000
CURVE_SETTINGS = 6
PART_SETTINGS = 1
SEED_LINES = 30

_CURVES: tuple[tuple[str, str, str], ...] = (
    ("total_loss", "Training loss", "total loss"),
    ("bbox/AP", "Box AP", "box AP, percent"),
    ("segm/AP", "Mask AP", "mask AP, percent"),
)
_PARTS: tuple[str, ...] = ("loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc")


@dataclass(frozen=True)
class Setting:
    """One group's part of every section."""

    name: str
    title: str
    anchor: str
    apart: list[str]
    verdict: list[Sentence]
    strips: list[Figure]
    legend: list[tuple[str, int]]
    ap: list[Table]
    certainty: Table | None
    papers: list[Table]
    beside: Table | None
    sizes: list[Table]
    classes: list[Table]
    class_gaps: list[Figure]
    curves: list[Figure]
    parts: list[Figure]
    curve_note: str
    samples: Samples
    matched_ok: bool
    matched_head: str
    matched: Table | None
    config_arm: str
    config: str


@dataclass(frozen=True)
class Page:
    """All that the templates print."""

    title: str
    summary: str
    settings: list[Setting]
    between: Table | None
    only_one: list[str]
    schedules: list[Family]
    label_counts: list[Family]
    papers: str
    probes: list[ProbeSection]
    sample_rule: str
    pretraining: list[PretrainingRun]
    proofs: Table
    runs: Table
    probe_runs: Table
    environment: Table
    failures: Table | None
    warnings: list[str]
    commands: list[tuple[str, str]]


def build_page(
    rows: Rows, *, title: str | None, pretraining: Sequence[Path], between: Between | None = None
) -> Page:
    """Everything the report says; raises InputError where there is nothing to report."""
    groups, probes = group_rows(rows.rows), group_probes(rows.rows)
    if not groups and not probes:
        skipped = ""
        if rows.problems:
            first = rows.problems[0]
            skipped = (
                f"; {counted(len(rows.problems), 'line')} skipped, first: "
                f"{first.path}, line {first.line}: {first.reason.removesuffix('; skipped')}"
            )
        raise InputError(
            f"no finished rows in the results ({counted(len(rows.rows), 'row')} read{skipped}); "
            "finish a run with tools/train_net.py or tools/probe.py first"
        )
    failed = [row for row in rows.rows if not row.finished]
    finished = [row for group in groups for row in group.rows]
    colours = _colours([*groups, *probes])
    runs = [read_run(path, colours) for path in pretraining]
    budget = PICTURE_BYTES
    settings = []
    for i, group in enumerate(groups):
        setting = _setting(group, i, groups[0], probes, runs, colours, budget)
        budget -= setting.samples.size
        settings.append(setting)
    shown: Sequence[Group | ProbeGroup] = groups or probes
    names = sorted({short_name(group.first.data["dataset"]["test"]) for group in shown})
    what = "Transfer to detection" if groups else "Probes of features"
    return Page(
        title=title or f"{what}: {listed(names[:3])}",
        summary=_summary(groups, probes, len(failed)),
        settings=settings,
        between=between.table() if between else None,
        only_one=[
            *(f"only here: {name}" for name in (between.only_here if between else ())),
            *(f"only there: {name}" for name in (between.only_there if between else ())),
        ],
        schedules=schedule_families(groups, colours),
        label_counts=label_families(groups, colours),
        papers=papers_sentence(groups),
        probes=[section(group, colours) for group in probes],
        sample_rule=rule(),
        pretraining=runs,
        proofs=proof_table(finished),
        runs=run_table(groups, colours),
        probe_runs=probe_run_table(probes, colours),
        environment=environment_table(rows.rows),
        failures=failure_table(rows.rows),
        warnings=warnings_of(rows.rows, rows.problems, groups) + probe_warnings(probes),
        commands=[(str(row.data["run"]), str(row.data["command"])) for row in rows.rows],
    )


def _summary(groups: Sequence[Group], probes: Sequence[ProbeGroup], failed: int) -> str:
    rows = [row for group in groups for row in group.rows]
    rows += [row for group in probes for row in group.rows]
    started = sorted(str(row.data["started"])[:10] for row in rows)
    when = started[0] if started[0] == started[-1] else f"{started[0]} to {started[-1]}"
    parts = []
    if groups:
        runs = sum(len(group.rows) for group in groups)
        parts.append(f"{counted(runs, 'finished run')} in {counted(len(groups), 'setting')}")
    if probes:
        runs = sum(len(group.rows) for group in probes)
        parts.append(f"{counted(runs, 'probe')} in {counted(len(probes), 'setting')}")
    text = f"{listed(parts)}, {when}"
    return f"{text}; {counted(failed, 'failed run')} left out" if failed else text


def _setting(
    group: Group,
    index: int,
    main: Group,
    probes: Sequence[ProbeGroup],
    runs: Sequence[PretrainingRun],
    colours: dict[str, int],
    budget: int,
) -> Setting:
    try:
        matched = group.matched()
        matched_ok, head = matched.ok, matched.lines()[0]
        table = matched_table(matched, group) if matched.allowed or matched.forbidden else None
    except InputError as error:
        matched_ok, head, table = False, f"NOT matched: {error}", None
    rulers = [ruler for ruler in RULERS if group.has(ruler)]
    ap = [_ap(group, ruler, colours) for ruler in rulers]
    if group.has("voc"):
        ap.append(_voc(group, colours))
    sizes = [
        ap_table(group, ruler, ("APs", "APm", "APl"), colours,
                 what=f"{sentence(RULERS[ruler])} of small, medium and large objects")
        for ruler in rulers
        if any(arm.summary(ruler, key).n for arm in group.arms for key in ("APs", "APm", "APl"))
    ]  # fmt: skip
    classes = [class_table(group, ruler) for ruler in (*rulers, "voc")
               if any(row.per_class(ruler) for row in group.rows)]  # fmt: skip
    if index < CURVE_SETTINGS:
        limit = len(_PARTS) if index < PART_SETTINGS else 0
        curves, parts, note = _curve_figures(group, colours, limit=limit)
    else:
        curves, parts = [], []
        note = f"Curves are drawn for the first {CURVE_SETTINGS} settings."
    if budget > 400_000:
        samples = draw_samples(group, index)
    else:
        note_samples = "No pictures here: those of the settings above fill the file."
        samples = Samples((), (), None, "", note_samples, Markup(""))
    return Setting(
        name=setting_name(index),
        title=group.title,
        anchor=f"setting-{index + 1}",
        apart=apart_because(group, main) if group is not main else [],
        verdict=[*verdict(group, matched=matched_ok), *learning_sentences(group, runs)],
        strips=_strips(group, rulers, colours),
        legend=[(arm.label, colours[arm.label] % charts.COLOURS) for arm in group.arms],
        ap=ap,
        certainty=certainty_table(group, rulers),
        papers=papers_tables(group),
        beside=beside_table(group, probes, colours),
        sizes=sizes,
        classes=classes,
        class_gaps=_class_gaps(group, rulers, colours) if index < CURVE_SETTINGS else [],
        curves=curves,
        parts=parts,
        curve_note=note,
        samples=samples,
        matched_ok=matched_ok,
        matched_head=head,
        matched=table,
        config_arm=group.arms[0].label,
        config=str(group.arms[0].rows[0].data["config"]),
    )


def _ap(group: Group, ruler: str, colours: dict[str, int]) -> Table:
    return ap_table(group, ruler, ("AP", "AP50", "AP75"), colours,
                    what=f"{sentence(RULERS[ruler])} by the COCO ruler")  # fmt: skip


def _voc(group: Group, colours: dict[str, int]) -> Table:
    metrics = sorted({str((row.data["metrics"].get("voc") or {}).get("metric", "unnamed"))
                      for row in group.rows})  # fmt: skip
    return ap_table(group, "voc", ("AP", "AP50", "AP75"), colours,
                    what=f"Box AP by the VOC ruler ({listed(metrics)} metric)")  # fmt: skip


def _strips(group: Group, rulers: Sequence[str], colours: dict[str, int]) -> list[Figure]:
    figures = []
    for ruler in rulers:
        strips = []
        for arm in group.arms:
            summary = arm.summary(ruler, "AP")
            if summary.mean is not None:
                strips.append(charts.Strip(arm.label, colours[arm.label], summary.values,
                                           summary.mean, summary.std))  # fmt: skip
        name = sentence(RULERS[ruler])
        trials = ", ".join(f"{arm.label} n={arm.summary(ruler, 'AP').n}" for arm in group.arms)
        caption = (
            f"{name} of every run (dots), the mean (bar) and one sample standard deviation "
            f"either way (band); {trials}; config {group.first.data['config_name']}. The axis "
            "does not start at zero."
        )
        svg = charts.strip_chart(strips, title=f"{name} of every run", x_label=f"{name}, percent")
        if svg:
            figures.append(Figure(name, svg, caption))
    return figures


def _class_gaps(group: Group, rulers: Sequence[str], colours: dict[str, int]) -> list[Figure]:
    """Each arm on trial minus supervised, class by class, largest gain first."""
    reference = group.supervised
    if reference is None or not rulers:
        return []
    figures = []
    for arm in group.on_trial:
        gaps = class_gaps(arm, reference, rulers[0])
        svg = charts.gap_chart(gaps, colours[arm.label],
                               title=f"{RULERS[rulers[0]]} of {arm.label} minus supervised",
                               x_label=f"{RULERS[rulers[0]]}, difference")  # fmt: skip
        if svg:
            caption = (
                f"{sentence(RULERS[rulers[0]])} of {arm.label} (n={len(arm.rows)}) minus "
                f"{reference.label} (n={len(reference.rows)}) by class, with Welch's 95 % "
                f"intervals, not corrected; config {group.first.data['config_name']}."
            )
            if len(gaps) > charts.MOST_GAPS:
                caption += f" The {charts.MOST_GAPS} largest of {len(gaps)} either way."
            figures.append(Figure(f"{arm.label} − {reference.label}", svg, caption))
    return figures


def _curve_figures(
    group: Group, colours: dict[str, int], *, limit: int
) -> tuple[list[Figure], list[Figure], str]:
    """(figures, figures of the first `limit` parts of the loss, what is missing)."""
    logs: dict[str, list[dict[str, Points]]] = {}
    missing = 0
    wanted = [*(key for key, _, _ in _CURVES), *_PARTS[:limit]]
    for arm in group.arms:
        read = [read_metrics(row.run_dir / "metrics.jsonl", wanted) for row in arm.rows]
        missing += sum(log is None for log in read)
        logs[arm.label] = [log for log in read if log is not None]
    config = str(group.first.data["config_name"])

    def figure(key: str, title: str, y_label: str) -> Figure | None:
        drawn: list[tuple[ArmCurve, int]] = []
        for label, runs in logs.items():
            curve = arm_curve(label, [run.get(key, []) for run in runs])
            if curve is not None:
                drawn.append((curve, colours[label]))
        if all(len(curve.mean) < 2 for curve, _ in drawn):
            return None  # a single evaluation is no curve; the tables have its numbers
        trials = ", ".join(f"{curve.label} n={len(curve.seeds)}" for curve, _ in drawn)
        thin = sum(len(curve.seeds) for curve, _ in drawn) <= SEED_LINES
        svg = charts.line_chart(
            drawn,
            title=f"{title} against iteration",
            x_label="iteration",
            y_label=y_label,
            dots="AP" in key,
            thin=thin,
        )
        when = "at each evaluation" if "AP" in key else "against iteration"
        lines = "thin: each seed, thick: their mean" if thin else "the mean of the seeds"
        caption = f"{title} {when}; {lines}; {trials}; config {config}."
        if "loss" in key:
            caption += (
                f" Spikes beyond {charts.SPIKE:g} times the usual range are cut at the frame."
            )
        return Figure(title, svg, caption)

    main = [made for key, title, y_label in _CURVES if (made := figure(key, title, y_label))]
    parts = [made for key in _PARTS[:limit] if (made := figure(key, key, key))]
    if not main and not parts:
        return [], [], "No run folder holds a metrics.jsonl with values, so no curves are drawn."
    note = f"metrics.jsonl is missing for {counted(missing, 'run')}." if missing else ""
    return main, parts, note


def _colours(groups: Sequence[Group | ProbeGroup]) -> dict[str, int]:
    """The same colour for the same arm all over the page: 0 random, 1 supervised, then others."""
    names = {arm.label: arm_rank(arm.name) for group in groups for arm in group.arms}
    others = sorted(label for label, rank in names.items() if rank == 2)
    free = charts.COLOURS - 2
    colours = {label: rank for label, rank in names.items() if rank < 2}
    return {**colours, **{label: 2 + i % free for i, label in enumerate(others)}}
