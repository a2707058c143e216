"""The page: a list of sections, from rows to blocks, once for both the html and the markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from moco_det.foundation.errors import InputError
from moco_det.report.charts import COLOURS
from moco_det.report.document import (
    Block,
    Figures,
    Fold,
    Heading,
    Html,
    Page,
    Section,
    Table,
    Text,
    text,
)
from moco_det.report.families import BY_LABELS, BY_SCHEDULE, family_blocks
from moco_det.report.formats import counted, listed
from moco_det.report.groups import (
    ON_TRIAL,
    Group,
    apart_because,
    group_probes,
    group_runs,
    short_name,
)
from moco_det.report.paper_comparison import paper_sentence, paper_tables
from moco_det.report.pictures import picture_blocks
from moco_det.report.probes import probe_blocks, probe_table
from moco_det.report.provenance import matched_blocks, proof_table, run_blocks
from moco_det.report.report_diff import ReportDiff
from moco_det.report.tables import (
    ap_tables,
    certainty_table,
    class_blocks,
    size_tables,
    strip_charts,
)
from moco_det.report.training import (
    PretrainingRun,
    curve_blocks,
    learning_sentences,
    pretraining_blocks,
    read_pretraining,
)
from moco_det.report.verdict import verdict
from moco_det.results import Rows

# Pictures are drawn for the first settings only: the file must stay small enough to send.
PICTURE_BYTES, LEAST_BYTES = 1_900_000, 400_000


@dataclass(frozen=True)
class Material:
    """What the sections are made of."""

    rows: Rows
    groups: Sequence[Group]
    probes: Sequence[Group]
    encoders: Sequence[PretrainingRun]
    diff: ReportDiff | None

    @property
    def failed(self) -> int:
        return sum(not row.finished for row in self.rows.rows)

    def each(self, blocks_of: Callable[[Group], Sequence[Block]]) -> list[Block]:
        """The blocks of every setting, each under its name where there are several."""
        blocks: list[Block] = []
        for group in self.groups:
            blocks += [Heading(group.name, group.title)] if len(self.groups) > 1 else []
            blocks += blocks_of(group)
        return blocks


def build_page(
    rows: Rows, *, title: str | None, pretraining: Sequence[Path], diff: ReportDiff | None = None
) -> Page:
    """Everything the report says; raises InputError where there is nothing to report."""
    groups, probes = group_runs(rows.rows), group_probes(rows.rows)
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
    colours = _give_colours([*groups, *probes])
    encoders = [read_pretraining(path, colours) for path in pretraining]
    material = Material(rows, groups, probes, encoders, diff)
    sections = [
        Section(anchor, link, heading, blocks_of(material), anchor not in HTML_ONLY)
        for anchor, link, heading, blocks_of in SECTIONS
    ]
    names = sorted({short_name(group.data["dataset"]["test"]) for group in groups or probes})
    what = "Transfer to detection" if groups else "Probes of features"
    return Page(
        title or f"{what}: {listed(names[:3])}",
        _summary(material),
        [section for section in sections if section.blocks],
    )


def _give_colours(groups: Sequence[Group]) -> dict[str, int]:
    """The same colour for the same arm all over the page: 0 random, 1 supervised, then others."""
    arms = [arm for group in groups for arm in group.arms]
    colours = {arm.label: arm.rank for arm in arms}
    others = sorted(label for label, rank in colours.items() if rank == ON_TRIAL)
    colours |= {label: 2 + i % (COLOURS - 2) for i, label in enumerate(others)}
    for arm in arms:
        arm.colour = colours[arm.label]
    return colours


def _summary(material: Material) -> str:
    parts, started = [], []
    for groups, what in ((material.groups, "finished run"), (material.probes, "probe")):
        rows = [row for group in groups for row in group.rows]
        started += [row.data["started"][:10] for row in rows]
        if rows:
            runs, settings = counted(len(rows), what), counted(len(groups), "setting")
            parts.append(f"{runs} in {settings}")
    first, last = min(started), max(started)
    text = f"{listed(parts)}, {first if first == last else f'{first} to {last}'}"
    failed = counted(material.failed, "failed run")
    return f"{text}; {failed} left out" if material.failed else text


def _failure_notice(material: Material) -> list[Block]:
    if not material.failed:
        return []
    runs, enter = counted(material.failed, "run"), "enters" if material.failed == 1 else "enter"
    link = Markup('<a href="#failures">what the log said</a>')
    notice = Markup('<p class="notice">{} failed and {} no mean: see {}.</p>')
    return [Html(notice.format(runs, enter, link))]


def _verdict(material: Material) -> list[Block]:
    def of(group: Group) -> list[Block]:
        sentences = [*verdict(group), *learning_sentences(group, material.encoders)]
        blocks: list[Block] = [Text(sentences, "verdict")]
        if group.index:
            apart = "; ".join(apart_because(group, material.groups[0]))
            blocks.append(text(f"Apart from setting A because: {apart}."))
        return [*blocks, Figures(strip_charts(group))]

    if not material.groups:
        return []
    measured = text(
        "Every number here was measured by the runs listed below, unless it is called published. "
        f"{paper_sentence(material.groups)}"
    )
    return [*material.each(of), measured, *_failure_notice(material)]


def _average_precision(material: Material) -> list[Block]:
    def of(group: Group) -> list[Block]:
        parts: dict[str, Sequence[Table | None]] = {
            "How sure are the differences?": [certainty_table(group)],
            "Against the papers": paper_tables(group),
            "Probes of the same weights": [probe_table(group, material.probes)],
        }
        blocks: list[Block] = [*ap_tables(group)]
        for name, tables in parts.items():
            shown = [table for table in tables if table is not None]
            blocks += [Heading(name), *shown] if shown else []
        sizes = size_tables(group)
        return [*blocks, Fold("By object size", sizes)] if sizes else blocks

    return material.each(of)


def _pictures(material: Material) -> list[Block]:
    left = PICTURE_BYTES

    def of(group: Group) -> list[Block]:
        nonlocal left
        if left <= LEAST_BYTES:
            return [text("No pictures here: those of the settings above fill the file.")]
        blocks = picture_blocks(group)
        left -= sum(len(block.markup) for block in blocks if isinstance(block, Html))
        return blocks

    return material.each(of)


def _probes(material: Material) -> list[Block]:
    notice = [] if material.groups or not material.probes else _failure_notice(material)
    return [*notice, *probe_blocks(material.probes)]


# In the page's order: anchor, name in the navigation, heading, and what makes the blocks; without
# blocks a section is left out.
SECTIONS: Sequence[tuple[str, str, str, Callable[[Material], Sequence[Block]]]] = (
    (
        "against",
        "Against",
        "Against the other report",
        lambda m: m.diff.blocks() if m.diff else [],
    ),
    ("verdict", "Verdict", "Verdict", _verdict),
    ("ap", "AP", "Average precision", _average_precision),
    (
        "schedules",
        "Schedules",
        "Does the gain last with longer training?",
        lambda m: family_blocks(m.groups, BY_SCHEDULE),
    ),
    (
        "labels",
        "Labels",
        "How does AP grow with the labelled images?",
        lambda m: family_blocks(m.groups, BY_LABELS),
    ),
    (
        "classes",
        "Classes",
        "Class by class",
        lambda m: m.each(lambda group: class_blocks(group, alone=len(m.groups) == 1)),
    ),
    ("curves", "Curves", "Loss and AP against iteration", lambda m: m.each(curve_blocks)),
    ("samples", "Detections", "Detections on the same images", _pictures),
    ("probes", "Probes", "Probes of features", _probes),
    ("pretraining", "Pre-training", "Pre-training", lambda m: pretraining_blocks(m.encoders)),
    (
        "matched",
        "Matched arms",
        "Do the arms differ only in their initialisation?",
        lambda m: m.each(matched_blocks),
    ),
    (
        "proofs",
        "Conversions",
        "Were the weights converted without loss?",
        lambda m: [proof_table(m.groups)] if m.groups else [],
    ),
    (
        "runs",
        "Runs",
        "Runs, environment, commands",
        lambda m: run_blocks(m.rows, m.groups, m.probes),
    ),
)
HTML_ONLY = {"curves", "samples"}
