"""Where the numbers come from: matched configs, converted weights, runs, machines, warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from moco_det.report.document import (
    Block,
    Cell,
    Commands,
    Fold,
    Heading,
    Items,
    Preformatted,
    Sentence,
    Table,
    Text,
    table_of,
    text,
)
from moco_det.report.formats import UNDEFINED, counted, duration, number, scientific, short_name
from moco_det.report.groups import Group
from moco_det.report.sentences import config_note, say
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
    config = Preformatted(str(arm.rows[0].data["config"]))
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
    caption = say("matched", matched=matched, config=config_note(group))
    return Table(caption, ("key", *matched.arms, "judgement"), rows, words=len(matched.arms) + 2)


def proof_table(groups: Sequence[Group]) -> Table:
    """One line per weights file: where it comes from and the proof of its conversion."""
    unique: dict[tuple[str, str | None], Mapping[str, Any]] = {}
    for row in (row for group in groups for row in group.rows):
        unique.setdefault((row.arm, row.data["init"]["sha256"]), row.data["init"])
    proofs = {key: init["verified"] or {} for key, init in unique.items()}
    stages = dict.fromkeys(s for proof in proofs.values() for s in proof.get("per_stage") or {})
    body = []
    for (arm, sha256), init in unique.items():
        proof, source = proofs[arm, sha256], init["source"] or {}
        known = [source.get(key) for key in ("format", "method", "arch", "file")]
        state = " · ".join(str(fact) for fact in known if fact) or "proven; the source is not named"
        if not init["weights"]:
            state = "random initialisation, nothing to prove"
        elif not proof:
            state = "no proof is stored with these weights"
        per_stage, tensors = proof.get("per_stage") or {}, proof.get("tensors")
        line = {
            "arm": arm,
            "weights": Cell(str(init["weights"] or "(none)"), state),
            "sha256": Cell(sha256 or UNDEFINED, "", "code"),
            "tensors": UNDEFINED if tensors is None else tensors,
            "largest": _difference(proof.get("max_abs_difference")),
        }
        body.append({**line, **{stage: _difference(per_stage.get(stage)) for stage in stages}})
    return table_of(
        "Each weights file, and the largest absolute feature difference between the source "
        "network and the converted one on the same input, overall and for each stage.",
        body,
        words=3,
    )


def _difference(value: Any) -> str:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return scientific(float(value) if is_number and abs(value) < 1e300 else None)


def run_blocks(rows: Rows, groups: Sequence[Group], probes: Sequence[Group]) -> list[Block]:
    """Machines, every run, the failed ones, warnings and commands."""
    blocks: list[Block] = [environment_table(rows.rows)]
    for table in (run_table(groups), run_table(probes, "probe")):
        if len(table.rows) > SHORT:
            blocks.append(Fold(f"All {len(table.rows)} {table.header[0]}s", [table]))
        elif table.rows:
            blocks.append(table)
    if any(not row.finished for row in rows.rows):
        blocks += [Heading("Failed runs"), failure_table(rows.rows)]
    commands = [(row.data["run"], row.data["command"]) for row in rows.rows]
    return [
        *blocks,
        Heading("Warnings"),
        Items(warnings_of(rows, groups, probes)),
        Heading("Commands"),
        Fold(f"The commands of {counted(len(commands), 'run')}", [Commands(commands)]),
    ]


def run_table(groups: Sequence[Group], what: str = "run") -> Table:
    """Every run, or probe, that counts, one line each."""
    several, masks = len(groups) > 1, any("segm" in group.metrics for group in groups)
    body, every = [], [(g, a, row) for g in groups for a in g.arms for row in a.rows]
    for group, arm, row in every:
        data = row.data
        line: dict[str, Any] = {what: Cell(data["run"], colour=arm.colour), "arm": arm.label}
        measured = {"box AP": number(row.metric("bbox", "AP"))}
        measured |= {"mask AP": number(row.metric("segm", "AP"))} if masks else {}
        size = {"iterations": f"{data['iterations'] or 0:,}"}
        size |= {"setting": group.name.removeprefix("Setting ")} if several else {}
        if row.probe:
            sha256 = (data["init"]["sha256"] or UNDEFINED)[:12]
            line |= {"protocol": data["protocol"], "sha256": Cell(sha256, "", "code")}
            measured, size = {"top-1": number(row.metric("probe", "top1"))}, {}
        line |= {"seed": row.seed, **measured, "wall time": duration(data["wall_seconds"])}
        body.append({**line, **size, "started (UTC)": data["started"]})
    return table_of(f"Every {what} behind the tables.", body, words=4 if what == "probe" else 2)


def environment_table(rows: Sequence[Row]) -> Table:
    """Each combination of software, machine and data once, with its number of runs."""

    def known(*facts: Any) -> str:  # a failed run may never have learned them
        return " ".join(str(fact) for fact in facts if fact is not None) or UNDEFINED

    def data_set(data: Mapping[str, Any], part: str) -> str:
        return known(short_name(data[part]), (data[f"{part}_fingerprint"] or "")[:12] or None)

    counts: Counter[tuple[tuple[str, str], ...]] = Counter()
    for data in (row.data for row in rows):
        engine, cores = data["engine"], data["hardware"]["cores"]
        facts = {
            "engine": known(engine["name"], engine["version"]),
            "torch": known(engine["torch"]),
            "torchvision": known(engine["torchvision"]),
            "precision": known(data["precision"]),
            "machine": known(data["hardware"]["device"], cores and f"with {cores} cores"),
            "training data": data_set(data["dataset"], "train"),
            "test data": data_set(data["dataset"], "test"),
        }
        counts[tuple(facts.items())] += 1
    return table_of(
        "Software, machine and data (with the fingerprint's first digits) of every row, failed "
        "ones included.",
        [{**dict(facts), "runs": count} for facts, count in counts.items()],
        words=7,
    )


def failure_table(rows: Sequence[Row]) -> Table:
    """Failed runs: listed, never averaged."""
    finished = {row.data["run"] for row in rows if row.finished}
    again = "finished when it was tried again"
    body = [
        {
            "run": Cell(row.data["run"], again if row.data["run"] in finished else ""),
            "arm": row.arm,
            "seed": row.seed,
            "what the run said": "; ".join([row.data["error"], *row.data["warnings"]]),
        }
        for row in rows
        if not row.finished
    ]
    return table_of("Failed runs. None of their numbers enters any mean.", body, words=4)


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
        folds = Counter(row.trial[1] for row in group.arms[0].rows)
        if len(folds) > 1 and max(folds.values()) > 1:
            lines.append(say("folds", count=len(folds), group=group))
        used = {(r.data["hardware"]["device"], r.data["engine"]["torch"]) for r in group.rows}
        if len(used) > 1:
            machines = "; ".join(sorted(f"{device} with torch {torch}" for device, torch in used))
            lines.append(f"one setting was run on several machines or torch versions: {machines}")
    return lines
