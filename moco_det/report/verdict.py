"""The verdict: a paragraph that says what was measured, and no more than the intervals allow."""

from __future__ import annotations

from collections.abc import Sequence

from moco_det.report.document import Sentence
from moco_det.report.formats import METRICS, interval, mean_std, short_name, signed
from moco_det.report.groups import NEAR_NOTHING, RANDOM, ArmRuns, Group
from moco_det.report.sentences import sentence
from moco_det.report.statistics import POWER, RULE, Comparison, seeds_needed

# With more arms on trial than this the verdict lists them instead of telling of each.
MANY_ARMS = 3


def verdict(group: Group) -> list[Sentence]:
    """What one setting says about its arms, from its own numbers only."""
    metrics, many, data = group.metrics, len(group.on_trial), group.data
    test = short_name(data["dataset"]["test"])
    said = [sentence("lead", data=data, test=test, runs=len(group.rows))]
    learned = [m for m in metrics if any(arm.learned(m) for arm in group.arms)]
    if names := [METRICS[metric] for metric in metrics if metric not in learned]:
        said.append(sentence("nothing", names=names, data=data, limit=NEAR_NOTHING))
    said += [*_comparisons(group, learned), *_power(group, learned)]
    for metric in metrics if many <= MANY_ARMS else ():
        trials = {_subject(arm): arm.trials(metric) for arm in group.arms}
        known = [f"{mean_std(t)} for {name} (n={t.n})" for name, t in trials.items() if t.n]
        said += [sentence("measured_ap", name=METRICS[metric], known=known)] if known else []
    for metric in metrics:
        arms = [_subject(arm) for arm in group.arms if not arm.trials(metric).n]
        if arms:
            every = len(arms) == len(group.arms)
            said.append(sentence("undefined_ap", name=METRICS[metric], arms=arms, every=every))
    if any("[" in one.text for one in said if one.finding):
        said.append(sentence("brackets", many=many, rule=RULE))
    if not group.matched.ok:
        said.append(sentence("not_matched"))
    return said


def _comparisons(group: Group, metrics: Sequence[str]) -> list[Sentence]:
    if len(group.arms) == 1:
        return [sentence("one_arm", arm=group.arms[0])]
    supervised, random = group.supervised, group.random
    if len(group.on_trial) > MANY_ARMS and supervised is not None:
        return _many(group, supervised, metrics)
    said = []
    for arm in group.on_trial or [arm for arm in group.arms if arm is not random]:
        for reference in (one for one in (supervised, random) if one is not None):
            alike: dict[str, list[tuple[str, Comparison]]] = {}
            for metric in metrics:
                gap = group.against(arm, reference, metric)
                if gap is not None and gap.difference is not None:
                    alike.setdefault(f"{gap.verdict} {gap.trials}", []).append((metric, gap))
            for same in alike.values():
                first = same[0][1]
                gaps = [
                    f"{signed(gap.difference)} {METRICS[metric]}"
                    + (f" {interval(gap)}" if gap.interval is not None else "")
                    for metric, gap in same
                ]
                names = {"a": _subject(arm), "b": _subject(reference)}
                said.append(sentence("compared", first=first, gaps=gaps, **names))
    return said if supervised is not None else [*said, sentence("no_supervised")]


def _many(group: Group, supervised: ArmRuns, metrics: Sequence[str]) -> list[Sentence]:
    """The arms on trial against supervised by verdict, one sentence per verdict and metric."""
    said = []
    for metric in metrics:
        alike: dict[str, list[str]] = {}
        for arm in group.on_trial:
            gap = group.against(arm, supervised, metric)
            if gap is not None and gap.difference is not None:
                found = f"{arm.label} {signed(gap.difference)} {interval(gap)}"
                alike.setdefault(gap.verdict, []).append(found)
        facts = {"supervised": supervised.label, "metric": METRICS[metric]}
        said += [sentence("many", verdict=v, arms=arms, **facts) for v, arms in alike.items()]
    return said


def _power(group: Group, metrics: Sequence[str]) -> list[Sentence]:
    """What it would take to decide the closest undecided arm; nothing where all are decided."""
    supervised = group.supervised
    undecided: list[tuple[float, ArmRuns, Comparison]] = []
    for arm in group.on_trial if metrics else ():
        gap = group.against(arm, supervised, metrics[0])
        if gap is not None and gap.interval is not None and not gap.decided:
            undecided.append((abs(gap.difference or 0.0), arm, gap))
    if supervised is None or not undecided:
        return []
    size, arm, gap = max(undecided, key=lambda found: found[0])
    counts = {n: seeds_needed(s, gap.deviation) for n, s in (("one", 1.0), ("measured", size))}
    if None in counts.values():
        return []
    names = {"metric": METRICS[metrics[0]], "arm": arm, "supervised": supervised}
    return [sentence("power", size=size, power=POWER, **counts, **names)]


def _subject(arm: ArmRuns) -> str:
    return "random initialisation" if arm.rank == RANDOM else arm.label
