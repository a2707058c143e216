"""The page: a list of sections, from rows to blocks, once for both the html and the markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from moco_det.foundation.errors import InputError
from moco_det.report import (
    cost,
    families,
    hypotheses,
    pictures,
    probes,
    provenance,
    tables,
    training,
)
from moco_det.report.charts import COLOURS
from moco_det.report.document import Block, Figures, Fold, Heading, Page, Section, Text, text
from moco_det.report.formats import counted, listed, short_name
from moco_det.report.groups import (
    ON_TRIAL,
    Group,
    apart_because,
    group_probes,
    group_runs,
)
from moco_det.report.paper_comparison import paper_sentence, paper_tables
from moco_det.report.report_diff import ReportDiff
from moco_det.report.sentences import say
from moco_det.report.verdict import verdict
from moco_det.results import Rows


def build_page(
    rows: Rows,
    *,
    title: str | None,
    pretraining: Sequence[Path],
    diff: ReportDiff | None = None,
    notes: Sequence[str] = (),
    studies: Sequence[hypotheses.Study] = (),
) -> Page:
    """Everything the report says; raises InputError where there is nothing to report."""
    groups, probed = group_runs(rows.rows), group_probes(rows.rows)
    if not (groups or probed or studies):
        raise InputError(say("no_rows", count=len(rows.rows), problems=rows.problems))
    colours = _give_colours([*groups, *probed])
    encoders = [training.read_pretraining(path, colours) for path in pretraining]
    failed = sum(not row.finished for row in rows.rows)
    notice = [text(say("failed", count=failed), "notice")] if failed else []
    alone = len(groups) == 1

    def each(blocks_of: Callable[[Group], Sequence[Block]]) -> list[Block]:
        """The blocks of every setting, each under its name where there are several."""
        blocks: list[Block] = []
        for group in groups:
            blocks += [*([] if alone else [Heading(group.name, group.title)]), *blocks_of(group)]
        return blocks

    said: list[Block] = each(lambda group: _verdict(group, groups[0], encoders))
    said += [text(paper_sentence(groups)), *map(text, notes), *notice] if groups else []
    schedules = families.blocks(groups, families.BY_SCHEDULE)
    labels = families.blocks(groups, families.BY_LABELS)
    classes = each(lambda group: tables.class_blocks(group, alone=alone))
    curves, detections = each(training.curve_blocks), each(partial(pictures.blocks, spent=[]))
    features = [*([] if groups else notice), *probes.blocks(probed)]
    proofs = [provenance.proof_table(groups)] if groups else []
    runs = provenance.run_blocks(rows, groups, probed) if rows.rows else []
    matched = each(provenance.matched_blocks)
    sections = [
        Section("Hypotheses", "What was asked, and what was found", hypotheses.blocks(studies)),
        Section("Against", "Against the other report", diff.blocks() if diff else []),
        Section("Verdict", "Verdict", said),
        Section("AP", "Average precision", each(lambda group: _ap(group, probed))),
        Section("Schedules", "Does the gain last with longer training?", schedules),
        Section("Labels", "How does AP grow with the labelled images?", labels),
        Section("Cost", "What do the detectors cost?", cost.blocks(groups)),
        Section("Classes", "Class by class", classes),
        Section("Curves", "Loss and AP against iteration", curves, in_markdown=False),
        Section("Detections", "Detections on the same images", detections, in_markdown=False),
        Section("Matched arms", "Do the arms differ only in their initialisation?", matched),
        Section("Conversions", "Were the weights converted without loss?", proofs),
        Section("Probes", "Probes of features", features),
        Section("Pre-training", "Pre-training", training.pretraining_blocks(encoders)),
        Section("Runs", "Runs, environment, commands", runs),
    ]
    names = sorted({short_name(group.data["dataset"]["test"]) for group in groups or probed})
    what = "Transfer to detection" if groups else "Probes of features"
    return Page(
        title or f"{what}: {listed(names[:3])}",
        _summary(groups, probed, failed),
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


def _summary(runs: Sequence[Group], probed: Sequence[Group], failed: int) -> str:
    parts, started = [], []
    for groups, what in ((runs, "finished run"), (probed, "probe")):
        days = [row.data["started"][:10] for group in groups for row in group.rows]
        started += days
        parts += [f"{counted(len(days), what)} in {counted(len(groups), 'setting')}"] * bool(days)
    return say("summary", parts=parts, days=sorted(started), failed=failed)


def _verdict(group: Group, main: Group, encoders: Sequence[training.PretrainingRun]) -> list[Block]:
    said = [*verdict(group), *training.learning_sentences(group, encoders)]
    apart = f"Apart from setting A because: {'; '.join(apart_because(group, main))}."
    other = [text(apart)] if group is not main else []
    return [Text(said, "verdict"), *other, Figures(tables.strip_charts(group))]


def _ap(group: Group, probed: Sequence[Group]) -> list[Block]:
    blocks: list[Block] = [*tables.ap_tables(group)]
    if certainty := tables.certainty_table(group):
        blocks += [Heading("How sure are the differences?"), certainty]
    if papers := paper_tables(group):
        blocks += [Heading("Against the papers"), *papers]
    if sizes := tables.size_tables(group):
        blocks.append(Fold("By object size", sizes))
    if beside := probes.probe_table(group, probed):
        blocks += [Heading("Probes of the same weights"), beside]
    return blocks
