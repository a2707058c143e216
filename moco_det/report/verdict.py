"""The verdict: a paragraph that says what was measured, and no more than the intervals allow."""

from __future__ import annotations

from collections.abc import Sequence

from moco_det.report.document import Sentence
from moco_det.report.formats import (
    METRICS,
    capital,
    counted,
    interval,
    listed,
    mean_std,
    seeds,
    signed,
)
from moco_det.report.groups import RANDOM, ArmRuns, Group, short_name
from moco_det.report.statistics import POWER, Comparison, seeds_needed

# With more arms on trial than this the verdict lists them instead of telling of each.
MANY_ARMS = 3


def verdict(group: Group) -> list[Sentence]:
    """What one setting says about its arms, from its own numbers only."""
    metrics, many = group.metrics, len(group.on_trial)
    said = [Sentence(_lead(group)), *_comparisons(group, metrics), *_power(group, metrics)]
    for metric in metrics if many <= MANY_ARMS else ():
        trials = {_subject(arm): arm.trials(metric) for arm in group.arms}
        known = [f"{mean_std(t)} for {name} (n={t.n})" for name, t in trials.items() if t.n]
        if known:
            said.append(Sentence(f"{capital(METRICS[metric])} is {listed(known)}."))
    for metric in metrics:
        without = [_subject(arm) for arm in group.arms if not arm.trials(metric).n]
        if without:
            whose = "" if len(without) == len(group.arms) else f" of {listed(without)}"
            name = capital(METRICS[metric])
            said.append(Sentence(f"{name}{whose} is undefined in every run."))
    if any("[" in sentence.text for sentence in said if sentence.finding):
        text = "Brackets are 95 % intervals of the difference"
        if many > 1:
            text += f"; verdicts against one reference are corrected for the {many} "
            text += "arms on trial (Holm)"
        said.append(Sentence(f"{text}."))
    if not group.matched.ok:
        text = (
            ": their configs differ in more than the initialisation, so a difference must not be "
            "credited to the weights."
        )
        said.append(Sentence(text, "The arms are not matched"))
    return said


def _lead(group: Group) -> str:
    data, dataset = group.data, group.data["dataset"]
    return (
        f"On {short_name(dataset['test'])} ({counted(dataset['train_images'], 'training image')}, "
        f"{counted(dataset['test_images'], 'test image')}), fine-tuned for "
        f"{counted(data['iterations'], 'iteration')} at batch {data['batch']} by the "
        f"{data['engine']['name']} engine in {data['precision']}, "
        f"{counted(len(group.rows), 'run')}."
    )


def _comparisons(group: Group, metrics: Sequence[str]) -> list[Sentence]:
    if len(group.arms) == 1:
        return [Sentence(f"There is one arm, {group.arms[0].label}, so nothing is compared.")]
    supervised, random = group.supervised, group.random
    if len(group.on_trial) > MANY_ARMS and supervised is not None:
        return _many(group, supervised, metrics)
    said: list[Sentence] = []
    for arm in group.on_trial or [arm for arm in group.arms if arm is not random]:
        for reference in (supervised, random):
            by_verdict: dict[str, list[tuple[str, Comparison]]] = {}
            for metric in metrics:
                gap = group.against(arm, reference, metric)
                if gap is not None and gap.difference is not None:
                    alike = by_verdict.setdefault(f"{gap.verdict} {gap.trials}", [])
                    alike.append((METRICS[metric], gap))
            if reference is not None:
                said += [_compared(arm, reference, same) for same in by_verdict.values()]
    if supervised is None:
        text = "There is no single supervised arm, so nothing is compared with supervised "
        said.append(Sentence(f"{text}pre-training."))
    return said


def _many(group: Group, supervised: ArmRuns, metrics: Sequence[str]) -> list[Sentence]:
    """The arms on trial against supervised by verdict, one sentence per verdict and metric."""
    said = []
    for metric in metrics:
        by_verdict: dict[str, list[str]] = {}
        for arm in group.on_trial:
            gap = group.against(arm, supervised, metric)
            if gap is not None and gap.difference is not None:
                alike = by_verdict.setdefault(gap.verdict, [])
                alike.append(f"{arm.label} {signed(gap.difference)} {interval(gap)}")
        for verdict, arms in by_verdict.items():
            of = f"than {supervised.label} " if verdict in ("higher", "lower") else ""
            if verdict.startswith("not distinguishable"):
                of = f"from {supervised.label} "
            finding = f"{capital(verdict)} {of}in {METRICS[metric]}"
            said.append(Sentence(f": {listed(arms)}.", finding))
    return said


def _power(group: Group, metrics: Sequence[str]) -> list[Sentence]:
    """What it would take to decide the closest undecided arm; nothing where all are decided."""
    supervised = group.supervised
    undecided: list[tuple[float, ArmRuns]] = []
    for arm in group.on_trial if supervised is not None and metrics else ():
        gap = group.against(arm, supervised, metrics[0])
        if gap is not None and gap.interval is not None and not gap.decided:
            undecided.append((abs(gap.difference or 0.0), arm))
    if supervised is None or not undecided:
        return []
    size, arm = max(undecided, key=lambda found: found[0])
    pair = arm.trials(metrics[0]), supervised.trials(metrics[0])
    one, measured = seeds_needed(1.0, *pair), seeds_needed(size, *pair)
    if one is None or measured is None:
        return []
    text = (
        f"At the deviation measured here, a true difference of 1 {METRICS[metrics[0]]} between "
        f"{arm.label} and {supervised.label} would need {seeds(one)} seeds per arm to be found "
        f"with power {POWER:g}"
    )
    gap_text = f"{size:.1f}"
    if float(gap_text) > 0:  # as printed: nobody looks for a difference of 0.0
        text += f"; one as large as the {gap_text} measured would need {seeds(measured)}"
    return [Sentence(f"{text}.")]


def _compared(arm: ArmRuns, reference: ArmRuns, measured: list[tuple[str, Comparison]]) -> Sentence:
    """One sentence about the metrics that gave the same verdict."""
    a, b = _subject(arm), _subject(reference)
    first = measured[0][1]
    if first.interval is None:
        gaps = listed([f"{signed(c.difference)} {metric}" for metric, c in measured])
        why = f"{first.verdict} ({first.trials}), so there is no interval"
        if first.verdict == "not enough trials":
            why = f"not enough trials to tell ({first.trials}; an interval needs two per arm)"
        return Sentence(f": {gaps}, but {why}.", f"{a} against {b}")
    gaps = listed([f"{signed(c.difference)} {metric} {interval(c)}" for metric, c in measured])
    if first.decided:
        return Sentence(f" ({first.trials}): {gaps}.", f"{a} is {first.verdict} than {b}")
    alike = f"{a} and {b} are not distinguishable at {first.trials}"
    if "correction" in first.verdict:
        return Sentence(f" for {first.family} arms: {gaps}.", f"{alike} after correction")
    return Sentence(f": {gaps}.", alike)


def _subject(arm: ArmRuns) -> str:
    return "random initialisation" if arm.rank == RANDOM else arm.label
