"""Two reports compared: what improved, what regressed, and what is no more than noise.

Settings are the same where everything that a mean may not mix is the same, but for the versions of
engine and libraries: to compare two versions is what this is for. Arms are paired by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moco_det.foundation.errors import InputError
from moco_det.report.formats import interval, listed, mean_std, p_value, signed
from moco_det.report.groups import Arm, Group, group_key, group_rows, setting
from moco_det.report.statistics import Comparison, compare_all, correct
from moco_det.report.tables import Cell, Table
from moco_det.report.verdict import RULERS
from moco_det.results import Row

# Position of the engine's version in a group's key.
_VERSION = 2


@dataclass(frozen=True)
class Change:
    """One arm's AP in this report minus the other's, corrected for all that were compared."""

    setting: str
    arm: str
    ruler: str
    ours: str
    theirs: str
    comparison: Comparison
    notes: tuple[str, ...]

    @property
    def outcome(self) -> str:
        """ "improved", "regressed", "within noise" or what the trials do not allow to say."""
        verdicts = {"higher": "improved", "lower": "regressed"}
        verdict = self.comparison.verdict
        if verdict.startswith("not distinguishable"):
            return "within noise"
        if verdict == "no spread measured":
            return self._without_spread()
        return verdicts.get(verdict, verdict)

    def _without_spread(self) -> str:
        # Trials that all give one number have no noise to hide a difference in.
        gap = self.comparison.difference or 0.0
        if abs(gap) < 1e-9:
            return "the same number in every trial"
        return "improved" if gap > 0 else "regressed"


@dataclass(frozen=True)
class Between:
    """Everything that two reports share, and what only one of them has."""

    changes: tuple[Change, ...]
    only_here: tuple[str, ...]
    only_there: tuple[str, ...]

    @property
    def regressed(self) -> bool:
        """Whether any AP is lower beyond noise."""
        return any(change.outcome == "regressed" for change in self.changes)

    def table(self) -> Table:
        """One line a comparison."""
        tones = {"improved": "gain", "regressed": "loss"}
        return Table(
            caption="AP here minus AP there, with Welch's 95 % interval; p is corrected for the "
            f"{len(self.changes)} comparisons (Holm). Improved and regressed mean beyond noise.",
            header=(
                "setting",
                "arm",
                "AP",
                "here",
                "there",
                "difference",
                "corrected p",
                "outcome",
            ),
            rows=tuple(
                (
                    Cell(change.setting),
                    Cell(change.arm, "; ".join(change.notes)),
                    Cell(RULERS[change.ruler]),
                    Cell(change.ours, change.comparison.trials),
                    Cell(change.theirs),
                    Cell(
                        signed(change.comparison.difference),
                        interval(change.comparison),
                        tones.get(change.outcome, ""),
                    ),
                    Cell(p_value(change.comparison.p_holm)),
                    Cell(change.outcome),
                )
                for change in self.changes
            ),
            words=3,
        )

    def lines(self) -> list[str]:
        """The comparison as text."""
        lines = [
            f"{change.outcome}: {change.arm}, {RULERS[change.ruler]}: {change.ours} here, "
            f"{change.theirs} there, {signed(change.comparison.difference)} "
            f"{interval(change.comparison)} ({change.comparison.trials}); {change.setting}"
            + (f" [{'; '.join(change.notes)}]" if change.notes else "")
            for change in self.changes
        ]
        lines += [f"only here: {name}" for name in self.only_here]
        lines += [f"only there: {name}" for name in self.only_there]
        outcomes = [change.outcome for change in self.changes]
        counts = [f"{outcomes.count(name)} {name}" for name in dict.fromkeys(outcomes)]
        return [*lines, f"{len(outcomes)} compared: {listed(counts)}"]


def compare_reports(ours: Iterable[Row], theirs: Iterable[Row]) -> Between:
    """Compare every arm in every setting that both have; InputError where they share none."""
    here, there = _cells(ours), _cells(theirs)
    for cells, whose in ((here, "these rows"), (there, "the rows to compare with")):
        if not cells:
            raise InputError(f"{whose} hold no finished detection run: there is nothing to compare")
    shared = [key for key in here if key in there]
    if not shared:
        reason = "no setting" if not _settings(here) & _settings(there) else "no arm in any setting"
        raise InputError(
            f"the two reports share {reason}: data, config, schedule, batch, precision and engine "
            "must be the same to compare them"
        )
    named: dict[tuple[Key, str], tuple[Arm, Arm]] = {}
    pairs = []
    for key in shared:
        for ruler in RULERS:
            if here[key][0].has(ruler) and there[key][0].has(ruler):
                named[(key, ruler)] = (here[key][1], there[key][1])
                pairs.append(
                    (here[key][1].summary(ruler, "AP"), there[key][1].summary(ruler, "AP"))
                )
    corrected = correct(dict(zip(named, compare_all(pairs), strict=True)))
    changes = [
        Change(
            setting=setting(a.rows[0]),
            arm=a.label,
            ruler=ruler,
            ours=mean_std(a.summary(ruler, "AP")),
            theirs=mean_std(b.summary(ruler, "AP")),
            comparison=corrected[(key, ruler)],
            notes=_notes(a, b),
        )
        for (key, ruler), (a, b) in named.items()
    ]
    return Between(
        changes=tuple(changes),
        only_here=tuple(_name(cell) for key, cell in here.items() if key not in there),
        only_there=tuple(_name(cell) for key, cell in there.items() if key not in here),
    )


Key = tuple[tuple[str, ...], str]


def _cells(rows: Iterable[Row]) -> dict[Key, tuple[Group, Arm]]:
    """Every arm by its setting without the engine's version, and its name.

    InputError where a report itself has an arm in two versions: either could be meant.
    """
    cells: dict[Key, tuple[Group, Arm]] = {}
    for group in group_rows(rows):
        key = group_key(group.first)
        bare = (*key[:_VERSION], *key[_VERSION + 1 :])
        for arm in group.arms:
            cell = (bare, arm.label if _twice(group, arm) else arm.name)
            if cell in cells:
                versions = [cells[cell][0].key[_VERSION], key[_VERSION]]
                raise InputError(
                    f"one of the two reports has {arm.label} on {group.title} by the engine's "
                    f"versions {listed(versions)}: compare files that hold one version each"
                )
            cells[cell] = (group, arm)
    return cells


def _twice(group: Group, arm: Arm) -> bool:
    return sum(other.name == arm.name for other in group.arms) > 1


def _settings(cells: dict[Key, tuple[Group, Arm]]) -> set[tuple[str, ...]]:
    return {key for key, _ in cells}


def _name(cell: tuple[Group, Arm]) -> str:
    group, arm = cell
    return f"{arm.label} on {group.title}"


def _notes(a: Arm, b: Arm) -> tuple[str, ...]:
    ours, theirs = a.rows[0].data, b.rows[0].data
    notes = []
    if a.sha256 != b.sha256:
        notes.append("other weights there")
    for key in ("version", "torch", "torchvision"):
        if ours["engine"][key] != theirs["engine"][key]:
            name = "engine" if key == "version" else key
            notes.append(f"{name} {ours['engine'][key]} here, {theirs['engine'][key]} there")
    if ours["hardware"]["device"] != theirs["hardware"]["device"]:
        notes.append(f"{ours['hardware']['device']} here, {theirs['hardware']['device']} there")
    return tuple(notes)
