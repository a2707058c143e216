"""Probes in the report: accuracies of features, apart from every AP, and beside it.

Only within one group (protocol, settings, data, precision and version) are accuracies set side by
side. Where an arm was probed after several numbers of steps, each has its own line, and together
they are a curve.
"""

from __future__ import annotations

from collections.abc import Sequence

from moco_det.report.charts import line_chart
from moco_det.report.document import (
    Block,
    Cell,
    Figure,
    Figures,
    Fold,
    Heading,
    Preformatted,
    Sentence,
    Table,
    Text,
    text,
)
from moco_det.report.formats import UNDEFINED, number
from moco_det.report.groups import PROTOCOLS, ArmRuns, Group, config_of
from moco_det.report.sentences import config_note, say
from moco_det.report.statistics import compare
from moco_det.report.tables import arm_cell, value_cell
from moco_det.report.training import mean_line
from moco_det.results.published import published_accuracies

ACCURACIES = {"top1": "top-1", "top5": "top-5", "mean_class": "mean of classes"}
_SHORT = {"knn": "kNN", "linear_lbfgs": "linear (L-BFGS)"}


def blocks(probes: Sequence[Group]) -> list[Block]:
    """Each group's tables, curve and settings."""
    made: list[Block] = []
    if probes:
        each = "each table is one protocol, one size and one pair of sets"
        made.append(text(f"Accuracies, never averaged with APs; {each}."))
    for group in probes:
        if len(probes) > 1:
            made.append(Heading(group.title))
        made += [*_warnings(group), accuracy_table(group)]
        if curve := accuracy_curve(group):
            made.append(Figures([curve]))
        none = "Nothing published has these data, sizes and settings, so none is shown."
        made.append(published_table(group) or text(none))
        made.append(Fold("The settings", [Preformatted(str(group.data["config"]))]))
    return made


def accuracy_table(group: Group) -> Table:
    """One line per arm and number of steps: mean ± std, under top-1 the gap to random."""
    reference = group.random
    body = []
    for arm in group.arms:
        steps = UNDEFINED if arm.steps is None else f"{arm.steps:,}"
        weights = {str(row.data["init"]["sha256"] or f"seed {row.seed}") for row in arm.rows}
        row = [arm_cell(arm), steps, len(arm.rows), len(weights)]
        for key in ACCURACIES:
            trials, gap = arm.trials("probe", key), None
            if key == "top1" and reference is not None and arm is not reference:
                every = [one.trials("probe", key) for one in group.arms]
                gap = compare(trials, reference.trials("probe", key), every)
            row.append(value_cell(trials, gap))
        body.append(row)
    caption = say("accuracy", group=group, data=group.data["dataset"])
    header = ("arm", "pre-training steps", "n", "weights", *ACCURACIES.values())
    return Table(caption, header, body)


def _warnings(group: Group) -> list[Block]:
    """The arms whose features are worse than those of random weights."""
    random = group.random.trials("probe", "top1").mean if group.random else None
    means = [(arm.label, arm.trials("probe", "top1").mean) for arm in group.arms]
    return [
        Text(
            [Sentence(say("below_random", arm=arm, mean=mean, random=random), "Warning:")], "notice"
        )
        for arm, mean in means
        if mean is not None and random is not None and mean < random
    ]


def published_table(group: Group) -> Table | None:
    """Published numbers of the same protocol, settings and data; None where there are none."""
    data, dataset = group.data, group.data["dataset"]
    sizes = {key: dataset[key] for key in ("train_images", "test_images")}
    settings = {**config_of(group.arms[0].rows[0]), **sizes, "classes": len(dataset["classes"])}
    found = published_accuracies(data["protocol"], settings)
    body = [(row.label, table.citation, number(row.values["probe.top1"])) for table, row in found]
    same = "ImageNet-1k, the same protocol and architecture; top-1 in percent."
    caption, header = f"Published, not measured here: {same}", ("published", "source", "top-1")
    return Table(caption, header, body, words=2) if body else None


def accuracy_curve(group: Group) -> Figure | None:
    """Top-1 against pre-training steps where an arm has several numbers of steps."""
    by_label: dict[str, list[ArmRuns]] = {}
    for arm in group.arms:
        by_label.setdefault(arm.label, []).append(arm)
    if all(len(points) == 1 for points in by_label.values()):
        return None
    drawn = []
    for label, points in by_label.items():
        by_seed: dict[int, list[tuple[float, float]]] = {}
        for row in (row for point in points for row in point.rows):
            steps, top1 = row.data["iterations"], row.metric("probe", "top1")
            if steps is not None and top1 is not None:
                by_seed.setdefault(row.seed, []).append((float(steps), top1))
        drawn.append(mean_line(label, points[0].colour, by_seed.values()))
    title = "Top-1 against pre-training steps"
    svg = line_chart(drawn, title, "top-1, percent", "pre-training steps", dots=True)
    trials = [f"{line.label} n={len(line.seeds)}" for line in drawn if line.seeds]
    return Figure(title, svg, say("accuracy_curve", title=group.title, trials=trials))


def probe_table(group: Group, probes: Sequence[Group]) -> Table | None:
    """The arms of a setting with the probes of their weights; None where no weights match.

    Weights are the same where the probed file is the detector's or the one that it was converted
    from, by sha256. Do better features make a better detector?
    """
    columns = []
    for probe in probes:
        points = {arm.label: _point(arm, probe) for arm in group.arms}
        # A random arm is matched by name alone, which does not make a comparison.
        if any(points[arm.label] and arm.init["sha256"] for arm in group.arms):
            columns.append((probe.data["protocol"], points))
    if not columns:
        return None
    body, unknown = [], Cell(UNDEFINED, "not probed")
    for arm in group.arms:
        found = [points[arm.label] for _, points in columns]
        trials = [point and point.trials("probe", "top1") for point in found]
        cells = [value_cell(one, counted=True) if one else unknown for one in trials]
        body.append([arm_cell(arm), value_cell(arm.trials("bbox"), counted=True), *cells])
    shorts = [_SHORT.get(protocol, protocol) for protocol, _ in columns]
    names = [f"{s}: {PROTOCOLS[p]}" for s, (p, _) in zip(shorts, columns, strict=True)]
    caption = say("probed", names=names, config=config_note(group))
    return Table(caption, ("arm", "box AP", *(f"top-1, {short}" for short in shorts)), body)


def _point(arm: ArmRuns, probe: Group) -> ArmRuns | None:
    inits = [row.data["init"] for row in arm.rows]
    wanted = {init["sha256"] for init in inits}
    wanted |= {(init["source"] or {}).get("sha256") for init in inits}
    wanted.discard(None)
    for point in probe.arms:
        if any(row.data["init"]["sha256"] in wanted for row in point.rows):
            return point
        if not wanted and point.name == arm.name and point.steps in (0, None):
            return point  # random weights have no file
    return None
