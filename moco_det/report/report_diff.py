"""Two reports compared: what improved, what regressed, and what is no more than noise.

Settings are the same where everything that a mean may not mix is the same, but for the versions of
engine and libraries: to compare two versions is what this is for. Arms are paired by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from moco_det.foundation.errors import InputError
from moco_det.report.document import Block, Cell, Items, table_of
from moco_det.report.formats import METRICS, interval, listed, mean_std, p_value, signed
from moco_det.report.groups import ArmRuns, Group, group_runs, setting_key
from moco_det.report.sentences import say
from moco_det.report.statistics import Comparison, compare, correct
from moco_det.results import Row


class Change(NamedTuple):
    """One arm's AP in this report minus the other's, corrected for all that were compared."""

    setting: str
    metric: str
    here: ArmRuns
    there: ArmRuns
    comparison: Comparison

    @property
    def outcome(self) -> str:
        """ "improved", "regressed", "within noise" or what the trials do not allow to say."""
        verdict, gap = self.comparison.verdict, self.comparison.difference or 0.0
        if verdict == "no spread measured":
            # Trials that all give one number have no noise to hide a difference in.
            if abs(gap) < 1e-9:
                return "the same number in every trial"
            verdict = "higher" if gap > 0 else "lower"
        if verdict.startswith("not distinguishable"):
            return "within noise"
        return {"higher": "improved", "lower": "regressed"}.get(verdict, verdict)

    @property
    def notes(self) -> str:
        """What else differs between the two."""
        ours, theirs = self.here.rows[0].data, self.there.rows[0].data
        notes = []
        if ours["init"]["sha256"] != theirs["init"]["sha256"]:
            notes.append("other weights there")
        facts = {"engine": "version", "torch": "torch", "torchvision": "torchvision"}
        pairs = {f"{name} ": (ours["engine"][k], theirs["engine"][k]) for name, k in facts.items()}
        pairs[""] = (ours["hardware"]["device"], theirs["hardware"]["device"])
        notes += [f"{name}{a} here, {b} there" for name, (a, b) in pairs.items() if a != b]
        return "; ".join(notes)

    def cells(self) -> dict[str, Any]:
        """The change as a row of a table."""
        gap = self.comparison
        here, there = self.here.trials(self.metric), self.there.trials(self.metric)
        tone = {"improved": "gain", "regressed": "loss"}.get(self.outcome, "")
        return {
            "setting": self.setting,
            "arm": Cell(self.here.label, self.notes),
            "AP": METRICS[self.metric],
            "here": Cell(mean_std(here), gap.trials),
            "there": Cell(mean_std(there)),
            "difference": Cell(signed(gap.difference), interval(gap), tone),
            "corrected p": p_value(gap.p_holm),
            "outcome": self.outcome,
        }

    def __str__(self) -> str:
        return say("change", **self.cells())


class ReportDiff(NamedTuple):
    """Everything that two reports share, and what only one of them has."""

    changes: tuple[Change, ...]
    only_one: tuple[str, ...]

    @property
    def regressed(self) -> bool:
        """Whether any AP is lower beyond noise."""
        return any(change.outcome == "regressed" for change in self.changes)

    def blocks(self) -> list[Block]:
        """One line per comparison, and what was not compared."""
        caption = say("changes", count=len(self.changes))
        table = table_of(caption, [change.cells() for change in self.changes], words=3)
        return [table, Items(self.only_one)] if self.only_one else [table]

    def lines(self) -> list[str]:
        """The comparison as text."""
        outcomes = [change.outcome for change in self.changes]
        counts = [f"{outcomes.count(name)} {name}" for name in dict.fromkeys(outcomes)]
        compared = f"{len(outcomes)} compared: {listed(counts)}"
        return [*map(str, self.changes), *self.only_one, compared]


def compare_reports(ours: Iterable[Row], theirs: Iterable[Row]) -> ReportDiff:
    """Compare every arm in every setting that both have; InputError where they share none."""
    here, there = _arms(ours), _arms(theirs)
    for found, whose in ((here, "these rows"), (there, "the rows to compare with")):
        if not found:
            raise InputError(f"{whose} hold no finished detection run: there is nothing to compare")
    pairs = [
        (metric, here[key], there[key])
        for key in here
        if key in there
        for metric in here[key][0].metrics
        if metric in there[key][0].metrics
    ]
    if not pairs:
        same = {key for key, _ in here} & {key for key, _ in there}
        raise InputError(
            f"the two reports share no {'arm in any ' if same else ''}setting: data, config, "
            "schedule, batch, precision and engine must be the same to compare them"
        )
    made = [_compared(metric, *both) for metric, *both in pairs]
    corrected = correct(dict(enumerate(made)))
    changes = [
        Change(group.title, metric, a, b, corrected[i])
        for i, (metric, (group, a), (_, b)) in enumerate(pairs)
    ]
    only = [
        f"only {where}: {arm.label} on {group.title}"
        for where, found, other in (("here", here, there), ("there", there, here))
        for key, (group, arm) in found.items()
        if key not in other
    ]
    return ReportDiff(tuple(changes), tuple(only))


def _compared(metric: str, here: tuple[Group, ArmRuns], there: tuple[Group, ArmRuns]) -> Comparison:
    setting = [arm.trials(metric) for group, _ in (here, there) for arm in group.arms]
    learned = any(arm.learned(metric) for _, arm in (here, there))
    return compare(here[1].trials(metric), there[1].trials(metric), setting, learned=learned)


def _arms(rows: Iterable[Row]) -> dict[tuple[str, str], tuple[Group, ArmRuns]]:
    """Every arm by its setting without the engine's version, and its name.

    InputError where a report itself has an arm in two versions: either could be meant.
    """
    found: dict[tuple[str, str], tuple[Group, ArmRuns]] = {}
    for group in group_runs(rows):
        setting = setting_key(group.arms[0].rows[0], without=["engine version"])
        names = [arm.name for arm in group.arms]
        for arm in group.arms:
            key = (setting, arm.label if names.count(arm.name) > 1 else arm.name)
            if key in found:
                versions = [one.data["engine"]["version"] for one in (found[key][0], group)]
                raise InputError(
                    f"one of the two reports has {arm.label} on {group.title} by the engine's "
                    f"versions {listed(versions)}: compare files that hold one version each"
                )
            found[key] = (group, arm)
    return found
