"""Where the numbers come from: matched configs, converted weights, runs, machines, warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from moco_det.report.document import (
    Block,
    Cell,
    Commands,
    Fold,
    Heading,
    Items,
    Sentence,
    Table,
    Text,
    preformatted,
    text,
)
from moco_det.report.formats import UNDEFINED, counted, duration, number, scientific
from moco_det.report.groups import Group, short_name
from moco_det.report.tables import config_note
from moco_det.results import Row, Rows
from moco_det.results.matched import WEIGHTS_KEY, Matched

# Longer tables of runs are folded.
SHORT = 24


def matched_blocks(group: Group) -> list[Block]:
    """Whether the arms differ only in their initialisation, and every key in which they differ."""
    matched, arm = group.matched, group.arms[0]
    said = Sentence(f": {matched.head}.", "Yes" if matched.ok else "No")
    differs = matched.allowed or matched.forbidden
    none = text("No key differs between the arms' resolved configs.")
    config = preformatted(str(arm.rows[0].data["config"]))
    return [
        Text([said], "good" if matched.ok else "bad"),
        matched_table(matched, group) if differs else none,
        Fold(f"The resolved config of {arm.label}", [config]),
    ]


def matched_table(matched: Matched, group: Group) -> Table:
    """Every config key in which the arms differ, allowed or not."""
    rows = []
    judged = [("forbidden", "loss", difference) for difference in matched.forbidden]
    judged += [("allowed", "", difference) for difference in matched.allowed]
    for verdict, tone, difference in judged:
        values = [difference.values.get(arm, "") for arm in matched.arms]
        if difference.key == WEIGHTS_KEY:
            values = [PurePath(value).name or "(none)" for value in values]
        reason = Cell(f"{verdict}: {difference.reason}", "", tone)
        rows.append([Cell(difference.key, "", "code"), *values, reason])
    return Table(
        f"Every key in which the {len(matched.arms)} arms' resolved configs differ, of "
        f"{matched.keys_compared} compared (OUTPUT_DIR and SEED are not). {config_note(group)}",
        ("key", *matched.arms, "judgement"),
        rows,
        words=len(matched.arms) + 2,
    )


def proof_table(groups: Sequence[Group]) -> Table:
    """One line per weights file: where it comes from and the proof of its conversion."""
    unique: dict[tuple[str, str | None], Row] = {}
    for row in (row for group in groups for row in group.rows):
        unique.setdefault((row.arm, row.data["init"]["sha256"]), row)
    proofs = {key: row.data["init"]["verified"] or {} for key, row in unique.items()}
    stages = list(
        dict.fromkeys(s for proof in proofs.values() for s in proof.get("per_stage") or {})
    )
    body = []
    for (arm, sha256), row in unique.items():
        init, proof = row.data["init"], proofs[arm, sha256]
        source, per_stage = init["source"] or {}, proof.get("per_stage") or {}
        known = [source.get(key) for key in ("format", "method", "arch", "file")]
        state = " · ".join(str(fact) for fact in known if fact) or "proven; the source is not named"
        if not init["weights"]:
            state = "random initialisation, nothing to prove"
        elif not proof:
            state = "no proof is stored with these weights"
        found = [proof.get("max_abs_difference"), *(per_stage.get(stage) for stage in stages)]
        body.append(
            [
                arm,
                Cell(str(init["weights"] or "(none)"), state),
                Cell(sha256 or UNDEFINED, "", "code"),
                UNDEFINED if proof.get("tensors") is None else proof["tensors"],
                *(scientific(_float(value)) for value in found),
            ]
        )
    return Table(
        "Each weights file, and the largest absolute feature difference between the source "
        "network and the converted one on the same input, overall and for each stage.",
        ("arm", "weights", "sha256", "tensors", "largest", *stages),
        body,
        words=3,
    )


def _float(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and value == value else None


def run_blocks(rows: Rows, groups: Sequence[Group], probes: Sequence[Group]) -> list[Block]:
    """Machines, every run, the failed ones, warnings and commands."""
    blocks: list[Block] = [environment_table(rows.rows)]
    for table, what in ((run_table(groups), "runs"), (probe_run_table(probes), "probes")):
        if len(table.rows) > SHORT:
            blocks.append(Fold(f"All {len(table.rows)} {what}", [table]))
        elif table.rows:
            blocks.append(table)
    if failed := failure_rows(rows.rows):
        header = ("run", "arm", "seed", "what the run said")
        caption = "Failed runs. None of their numbers enters any mean."
        heading = Heading("Failed runs", anchor="failures")
        blocks += [heading, Table(caption, header, failed, words=4)]
    commands = [(str(row.data["run"]), str(row.data["command"])) for row in rows.rows]
    return [
        *blocks,
        Heading("Warnings"),
        Items(warnings_of(rows, groups, probes)),
        Heading("Commands"),
        Fold(f"The commands of {counted(len(commands), 'run')}", [Commands(commands)]),
    ]


def run_table(groups: Sequence[Group]) -> Table:
    """Every run that counts, one line each."""
    masks, several = any(group.has("segm") for group in groups), len(groups) > 1
    body = []
    for group in groups:
        for arm in group.arms:
            for row in arm.rows:
                data = row.data
                aps = [number(row.metric(metric, "AP")) for metric in ("bbox", "segm")[: 1 + masks]]
                body.append(
                    [
                        Cell(data["run"], colour=arm.colour),
                        arm.label,
                        row.seed,
                        *aps,
                        duration(data["wall_seconds"]),
                        f"{data['iterations']:,}",
                        *([group.name.removeprefix("Setting ")] if several else []),
                        data["started"],
                    ]
                )
    header = ["run", "arm", "seed", "box AP", *(["mask AP"] if masks else []), "wall time"]
    header += ["iterations", *(["setting"] if several else []), "started (UTC)"]
    return Table("Every run behind the tables.", header, body, words=2)


def probe_run_table(probes: Sequence[Group]) -> Table:
    """Every probe that counts, one line each."""
    body = [
        [
            Cell(row.data["run"], colour=arm.colour),
            arm.label,
            row.data["protocol"],
            Cell((row.data["init"]["sha256"] or UNDEFINED)[:12], "", "code"),
            row.seed,
            number(row.metric("probe", "top1")),
            duration(row.data["wall_seconds"]),
            row.data["started"],
        ]
        for group in probes
        for arm in group.arms
        for row in arm.rows
    ]
    header = ("probe", "arm", "protocol", "sha256", "seed", "top-1", "wall time", "started (UTC)")
    return Table("Every probe behind the tables.", header, body, words=4)


def environment_table(rows: Sequence[Row]) -> Table:
    """Each combination of software, machine and data once, with its number of runs."""
    counts: Counter[tuple[str, ...]] = Counter()

    def known(*facts: Any) -> str:  # a failed run may never have learned them
        return " ".join(str(fact) for fact in facts if fact is not None) or UNDEFINED

    for data in (row.data for row in rows):
        engine, dataset, hardware = data["engine"], data["dataset"], data["hardware"]
        cores = None if hardware["cores"] is None else f"with {hardware['cores']} cores"
        prints = [(dataset[f"{part}_fingerprint"] or "")[:12] for part in ("train", "test")]
        facts = (
            known(engine["name"], engine["version"]),
            known(engine["torch"]),
            known(engine["torchvision"]),
            known(data["precision"]),
            known(hardware["device"], cores),
            known(short_name(dataset["train"]), prints[0] or None),
            known(short_name(dataset["test"]), prints[1] or None),
        )
        counts[facts] += 1
    return Table(
        "Software, machine and data (with the fingerprint's first digits) of every row, failed "
        "ones included.",
        (
            "engine",
            "torch",
            "torchvision",
            "precision",
            "machine",
            "training data",
            "test data",
            "runs",
        ),
        [[*facts, count] for facts, count in counts.items()],
        words=7,
    )


def failure_rows(rows: Sequence[Row]) -> list[list[Any]]:
    """Failed runs: listed, never averaged."""
    finished = {row.data["run"] for row in rows if row.finished}
    body = []
    for row in (row for row in rows if not row.finished):
        reasons = [row.data["error"], *row.data["warnings"]]
        again = "finished when it was tried again" if row.data["run"] in finished else ""
        body.append([Cell(row.data["run"], again), row.arm, row.seed, "; ".join(reasons)])
    return body


def warnings_of(rows: Rows, groups: Sequence[Group], probes: Sequence[Group]) -> list[str]:
    """What a reader should know before trusting the numbers, each once with its count."""
    counts = Counter(str(w) for row in rows.rows if row.finished for w in row.data["warnings"])
    lines = [f"{said} ({count} runs)" if count > 1 else said for said, count in counts.items()]
    lines += [f"skipped a line of the results: {problem}" for problem in rows.problems]
    ways = "was pre-trained in {} ways or probed with different rates"
    known = [("run", group, "comes with {} different weights or input formats") for group in groups]
    for what, group, why in (*known, *(("probe", group, ways) for group in probes)):
        lines += [
            f"{what} {row.data['run']} was repeated with the same weights and seed; the later row "
            "counts"
            for row in group.repeated
        ]
        names = Counter(name for name, _ in {(arm.name, arm.label) for arm in group.arms})
        lines += [
            f"the arm {name} {why.format(count)}, shown apart"
            for name, count in sorted(names.items())
            if count > 1
        ]
        used = {(r.data["hardware"]["device"], r.data["engine"]["torch"]) for r in group.rows}
        if len(used) > 1:
            machines = "; ".join(sorted(f"{device} with torch {torch}" for device, torch in used))
            lines.append(f"one setting was run on several machines or torch versions: {machines}")
    return lines
