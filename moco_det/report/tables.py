"""The report's tables as data, so that the page and the markdown show the same numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from moco_det.report.formats import (
    UNDEFINED,
    duration,
    interval,
    mean_std,
    number,
    scientific,
    signed,
)
from moco_det.report.groups import Arm, Group, short_name
from moco_det.report.statistics import Comparison, compare_all
from moco_det.report.verdict import RULERS
from moco_det.results import Problem, Row
from moco_det.results.matched import WEIGHTS_KEY, Matched


@dataclass(frozen=True)
class Cell:
    """A value, a second line under it, and how it looks ("gain", "loss", "code" or nothing)."""

    text: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """`words` columns from the left hold words, the others numbers; `arms` marks coloured rows."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: int = 1
    colours: tuple[int | None, ...] = field(default=())


def ap_table(
    group: Group, ruler: str, keys: Sequence[str], colours: dict[str, int], *, what: str
) -> Table:
    """Arms as rows; mean ± std with the difference to supervised under it, then to random."""
    random, supervised = group.random, group.supervised
    header = ["arm", "n", *keys]
    against_random = random is not None and len(group.arms) > 1
    if against_random:
        header.append(f"{keys[0]} − random")
    rows = []
    for arm in group.arms:
        cells = [Cell(arm.label), Cell(str(arm.summary(ruler, keys[0]).n))]
        for key in keys:
            summary = arm.summary(ruler, key)
            note, tone = difference(group.against(arm, supervised, ruler, key))
            cells.append(Cell(mean_std(summary), note, tone))
        if against_random:
            comparison = group.against(arm, random, ruler, keys[0])
            cells.append(_difference_cell(comparison))
        rows.append(tuple(cells))
    caption = f"{what}, percent: mean ± sample standard deviation over n seeds"
    if supervised is not None and len(group.arms) > 1:
        caption += (
            f"; under it the difference to {supervised.label} with Welch's 95 % interval, in "
            "colour where that is beyond noise"
        )
        if len(group.on_trial) > 1:
            caption += f" after Holm's correction over the {len(group.on_trial)} arms on trial"
    elif supervised is None:
        caption += "; no single supervised arm to compare with"
    return Table(
        caption=f"{caption}. {config_note(group)}",
        header=tuple(header),
        rows=tuple(rows),
        colours=tuple(colours[arm.label] for arm in group.arms),
    )


def config_note(group: Group) -> str:
    """The end of every caption: which config, for how long, on what."""
    data = group.first.data
    return (
        f"Config {data['config_name']}, {data['iterations']:,} iterations, "
        f"{data['engine']['name']}, {data['precision']}."
    )


def difference(comparison: Comparison | None) -> tuple[str, str]:
    """("+1.4 [−3.0, +5.8]", tone) of a comparison; empty where there is none."""
    if comparison is None or comparison.difference is None:
        return "", ""
    tone = {"higher": "gain", "lower": "loss"}.get(comparison.verdict, "")
    return f"{signed(comparison.difference)} {interval(comparison)}", tone


def _difference_cell(comparison: Comparison | None) -> Cell:
    if comparison is None or comparison.difference is None:
        return Cell(UNDEFINED)
    _, tone = difference(comparison)
    return Cell(signed(comparison.difference), interval(comparison), tone)


def class_table(group: Group, ruler: str) -> Table:
    """Classes as rows in the data's order, arms as columns."""
    classes = [str(name) for name in group.first.data["dataset"]["classes"]]
    known = {name for row in group.rows for name in row.per_class(ruler)}
    classes = [name for name in classes if name in known] + sorted(known - set(classes))
    summaries = {
        arm.label: [arm.class_summary(ruler, name) for name in classes] for arm in group.arms
    }
    reference = group.supervised
    gaps: dict[str, list[Comparison]] = {}
    for arm in group.arms:
        if reference is not None and reference is not arm:
            pairs = zip(summaries[arm.label], summaries[reference.label], strict=True)
            gaps[arm.label] = compare_all(list(pairs))
    rows = []
    for i, name in enumerate(classes):
        cells = [Cell(name)]
        for label, measured in summaries.items():
            note, tone = difference(gaps[label][i] if label in gaps else None)
            cells.append(Cell(mean_std(measured[i]), note, tone))
        rows.append(tuple(cells))
    trials = ", ".join(f"{arm.label} {len(arm.rows)}" for arm in group.arms)
    what = RULERS.get(ruler, "VOC AP").replace("AP", "AP of each class")
    return Table(
        caption=f"{what[0].upper()}{what[1:]}, percent: mean ± sample standard deviation; under "
        "it the difference to supervised with Welch's 95 % interval, in colour where it "
        f"excludes zero, not corrected for the number of classes. n: {trials}. "
        f"{config_note(group)}",
        header=("class", *(arm.label for arm in group.arms)),
        rows=tuple(rows),
    )


def class_gaps(arm: Arm, reference: Arm, ruler: str) -> list[tuple[str, Comparison]]:
    """(class, arm minus reference) of the classes that both measured, largest gain first."""
    names = sorted({name for row in arm.rows for name in row.per_class(ruler)})
    pairs = [(arm.class_summary(ruler, n), reference.class_summary(ruler, n)) for n in names]
    made = zip(names, compare_all(pairs), strict=True)
    measured = [(name, gap) for name, gap in made if gap.difference is not None]
    return sorted(measured, key=lambda item: -(item[1].difference or 0.0))


def matched_table(matched: Matched, group: Group) -> Table:
    """Every config key in which the arms differ, allowed or not."""
    rows = []
    differences = [(d, "forbidden") for d in matched.forbidden]
    differences += [(d, "allowed") for d in matched.allowed]
    for item, judgement in differences:
        values = [
            Cell(_file_name(item.values[arm]) if item.key == WEIGHTS_KEY else item.values[arm])
            for arm in matched.arms
        ]
        tone = "loss" if judgement == "forbidden" else ""
        rows.append(
            (Cell(item.key, "", "code"), *values, Cell(f"{judgement}: {item.reason}", "", tone))
        )
    return Table(
        caption=f"Every key in which the {len(matched.arms)} arms' resolved configs differ, of "
        f"{matched.keys_compared} compared (OUTPUT_DIR and SEED are not). {config_note(group)}",
        header=("key", *matched.arms, "judgement"),
        rows=tuple(rows),
        words=len(matched.arms) + 2,
    )


def _file_name(value: str) -> str:
    return PurePath(value).name if value else "(none)"


def proof_table(rows: Sequence[Row]) -> Table:
    """One line a weights file: where it comes from and the proof of its conversion."""
    unique: dict[tuple[str, str | None], Row] = {}
    for row in rows:
        unique.setdefault((row.arm, row.data["init"]["sha256"]), row)
    stages: list[str] = []
    for row in unique.values():
        for stage in _verified(row).get("per_stage") or {}:
            if stage not in stages:
                stages.append(str(stage))
    body = []
    for (arm, sha256), row in unique.items():
        init, verified = row.data["init"], _verified(row)
        source = init["source"] or {}
        origin = " · ".join(
            str(source[k]) for k in ("format", "method", "arch", "file") if source.get(k)
        )
        per_stage = verified.get("per_stage") or {}
        if not init["weights"]:
            state = "random initialisation, nothing to prove"
        elif not verified:
            state = "no proof is stored with these weights"
        else:
            state = origin or "proven; the source is not named"
        tensors = verified.get("tensors")
        body.append(
            (
                Cell(arm),
                Cell(str(init["weights"] or "(none)"), state),
                Cell(sha256 or UNDEFINED, "", "code"),
                Cell(UNDEFINED if tensors is None else str(tensors)),
                Cell(scientific(_float(verified.get("max_abs_difference")))),
                *(Cell(scientific(_float(per_stage.get(stage)))) for stage in stages),
            )
        )
    return Table(
        caption="Each weights file, and the largest absolute feature difference between the source "
        "network and the converted one on the same input, overall and for each stage.",
        header=("arm", "weights", "sha256", "tensors", "largest", *stages),
        rows=tuple(body),
        words=3,
    )


def _verified(row: Row) -> dict[str, Any]:
    return row.data["init"]["verified"] or {}


def _float(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and value == value else None


def run_table(groups: Sequence[Group], colours: dict[str, int]) -> Table:
    """Every run that counts, one line each."""
    body: list[tuple[Cell, ...]] = []
    marks: list[int | None] = []
    masks = any(group.has("segm") for group in groups)
    for i, group in enumerate(groups):
        for arm in group.arms:
            for row in arm.rows:
                data = row.data
                cells = [
                    Cell(str(data["run"])),
                    Cell(arm.label),
                    Cell(str(row.seed)),
                    Cell(number(row.metric("bbox", "AP"))),
                ]
                if masks:
                    cells.append(Cell(number(row.metric("segm", "AP"))))
                cells.append(Cell(duration(float(data["wall_seconds"]))))
                cells.append(Cell(f"{data['iterations']:,}"))
                if len(groups) > 1:
                    cells.append(Cell(setting_name(i)))
                cells.append(Cell(str(data["started"])))
                body.append(tuple(cells))
                marks.append(colours[arm.label])
    header = ["run", "arm", "seed", "box AP", *(["mask AP"] if masks else []), "wall time"]
    header += ["iterations", *(["setting"] if len(groups) > 1 else []), "started (UTC)"]
    return Table("Every run behind the tables.", tuple(header), tuple(body), 2, tuple(marks))


def environment_table(rows: Sequence[Row]) -> Table:
    """Each combination of software, machine and data once, with its number of runs."""
    counts: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        data = row.data
        engine, dataset = data["engine"], data["dataset"]
        counts[
            (
                f"{engine['name']} {engine['version']}",
                engine["torch"],
                engine["torchvision"],
                data["precision"],
                f"{data['hardware']['device']}, {data['hardware']['cores']} cores",
                f"{short_name(dataset['train'])} {dataset['train_fingerprint'][:12]}",
                f"{short_name(dataset['test'])} {dataset['test_fingerprint'][:12]}",
            )
        ] += 1
    header = ("engine", "torch", "torchvision", "precision", "machine", "training data",
              "test data", "runs")  # fmt: skip
    body = tuple((*map(Cell, key), Cell(str(count))) for key, count in counts.items())
    return Table("Software, machine and data (with the fingerprint's first digits) of every row, "
                 "failed ones included.", header, body, words=7)  # fmt: skip


def failure_table(rows: Sequence[Row]) -> Table | None:
    """Failed runs: listed, never averaged; None where none failed."""
    finished = {row.data["run"] for row in rows if row.finished}
    body = []
    for row in (row for row in rows if not row.finished):
        reasons = [*([str(row.data["error"])] if row.data.get("error") else [])]
        reasons += [str(warning) for warning in row.data["warnings"]]
        again = "finished when it was tried again" if row.data["run"] in finished else ""
        body.append((Cell(str(row.data["run"]), again), Cell(row.arm), Cell(str(row.seed)),
                     Cell("; ".join(reasons) or "no reason was recorded")))  # fmt: skip
    if not body:
        return None
    return Table("Failed runs. None of their numbers enters any mean.",
                 ("run", "arm", "seed", "what the run said"), tuple(body), words=4)  # fmt: skip


def warnings_of(
    rows: Sequence[Row], problems: Sequence[Problem], groups: Sequence[Group]
) -> list[str]:
    """What a reader should know before trusting the numbers, each once with its count."""
    counts = Counter(str(w) for row in rows if row.finished for w in row.data["warnings"])
    lines = [f"{text} ({count} runs)" if count > 1 else text for text, count in counts.items()]
    lines += [f"skipped a line of the results: {problem}" for problem in problems]
    for group in groups:
        lines += [
            f"run {row.data['run']} was repeated with the same seed and weights; the later row "
            "counts"
            for row in group.repeated
        ]
        names = Counter(arm.name for arm in group.arms)
        lines += [
            f"the arm {name} comes with {count} different weights or input formats, shown apart"
            for name, count in names.items()
            if count > 1
        ]
        devices = {
            (row.data["hardware"]["device"], row.data["engine"]["torch"]) for row in group.rows
        }
        if len(devices) > 1:
            lines.append(
                "one setting was run on several machines or torch versions: "
                + "; ".join(sorted(f"{device} with torch {torch}" for device, torch in devices))
            )
    return lines


def setting_name(index: int) -> str:
    """Setting A, B, ... Z, 27, 28 ... for pages with several settings."""
    return chr(ord("A") + index) if index < 26 else str(index + 1)
