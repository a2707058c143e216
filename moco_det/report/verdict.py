"""The verdict: a paragraph that says what was measured, and no more than the intervals allow."""

from __future__ import annotations

from dataclasses import dataclass

from moco_det.report.formats import (
    counted,
    interval,
    listed,
    mean_std,
    seeds,
    sentence,
    signed,
)
from moco_det.report.groups import RANDOM_NAMES, SUPERVISED_NAMES, Arm, Group, short_name
from moco_det.report.statistics import POWER, Comparison, seeds_needed

# With more arms on trial than this the verdict lists them instead of telling of each.
MANY_ARMS = 3

RULERS: dict[str, str] = {"bbox": "box AP", "segm": "mask AP"}


@dataclass(frozen=True)
class Sentence:
    """One sentence; `finding` is its part that answers the question and is printed strong."""

    text: str
    finding: str = ""

    def __str__(self) -> str:
        return f"{self.finding}{self.text}"


def verdict(group: Group, *, matched: bool) -> list[Sentence]:
    """What one setting says about its arms, from its own numbers only."""
    rulers = [ruler for ruler in RULERS if group.has(ruler)]
    sentences = [Sentence(_lead(group)), *_comparisons(group, rulers), *_power(group, rulers)]
    for ruler in rulers if len(group.on_trial) <= MANY_ARMS else ():
        measured = [
            f"{mean_std(arm.summary(ruler, 'AP'))} for {_subject(arm)} "
            f"(n={arm.summary(ruler, 'AP').n})"
            for arm in group.arms
            if arm.summary(ruler, "AP").n
        ]
        if measured:
            sentences.append(Sentence(f"{sentence(RULERS[ruler])} is {listed(measured)}."))
    for ruler in rulers:
        without = [_subject(arm) for arm in group.arms if not arm.summary(ruler, "AP").n]
        if without:
            whose = "" if len(without) == len(group.arms) else f" of {listed(without)}"
            text = f"{sentence(RULERS[ruler])}{whose} is undefined in every run."
            sentences.append(Sentence(text))
    if any("[" in said.text for said in sentences if said.finding):
        text = "Brackets are 95 % intervals of the difference"
        if len(group.on_trial) > 1:
            text += (
                f"; verdicts against one reference are corrected for the {len(group.on_trial)} "
                "arms on trial (Holm)"
            )
        sentences.append(Sentence(f"{text}."))
    if not matched:
        text = (
            ": their configs differ in more than the initialisation, so a difference must not be "
            "credited to the weights."
        )
        sentences.append(Sentence(text, "The arms are not matched"))
    return sentences


def _lead(group: Group) -> str:
    data = group.first.data
    dataset = data["dataset"]
    return (
        f"On {short_name(dataset['test'])} ({counted(dataset['train_images'], 'training image')}, "
        f"{counted(dataset['test_images'], 'test image')}), fine-tuned for "
        f"{counted(data['iterations'], 'iteration')} at batch {data['batch']} by the "
        f"{data['engine']['name']} engine in {data['precision']}, "
        f"{counted(len(group.rows), 'run')}."
    )


def _comparisons(group: Group, rulers: list[str]) -> list[Sentence]:
    if len(group.arms) == 1:
        return [Sentence(f"There is one arm, {group.arms[0].label}, so nothing is compared.")]
    sentences: list[Sentence] = []
    supervised, random = group.supervised, group.random
    if len(group.on_trial) > MANY_ARMS and supervised is not None:
        return _many(group, supervised, rulers)
    tried = [arm for arm in group.arms if arm.name not in (*SUPERVISED_NAMES, *RANDOM_NAMES)]
    for arm in tried or [arm for arm in group.arms if arm is not random]:
        for reference in (supervised, random):
            if reference is None or reference is arm:
                continue
            by_verdict: dict[str, list[tuple[str, Comparison]]] = {}
            for ruler in rulers:
                comparison = group.against(arm, reference, ruler, "AP")
                if comparison is not None and comparison.difference is not None:
                    said = f"{comparison.verdict} {comparison.trials}"
                    by_verdict.setdefault(said, []).append((RULERS[ruler], comparison))
            sentences += [_compared(arm, reference, same) for same in by_verdict.values()]
    if supervised is None:
        text = "There is no single supervised arm, so nothing is compared with supervised "
        sentences.append(Sentence(f"{text}pre-training."))
    return sentences


def _many(group: Group, supervised: Arm, rulers: list[str]) -> list[Sentence]:
    """The arms on trial against supervised by verdict, a sentence a verdict and ruler."""
    sentences = []
    for ruler in rulers:
        by_verdict: dict[str, list[str]] = {}
        for arm in group.on_trial:
            comparison = group.against(arm, supervised, ruler, "AP")
            if comparison is not None and comparison.difference is not None:
                said = f"{arm.label} {signed(comparison.difference)} {interval(comparison)}"
                by_verdict.setdefault(comparison.verdict, []).append(said)
        for said, arms in by_verdict.items():
            decided = f"than {supervised.label} " if said in ("higher", "lower") else ""
            if said.startswith("not distinguishable"):
                decided = f"from {supervised.label} "
            finding = f"{sentence(said)} {decided}in {RULERS[ruler]}"
            sentences.append(Sentence(f": {listed(arms)}.", finding))
    return sentences


def _power(group: Group, rulers: list[str]) -> list[Sentence]:
    """What it would take to decide the closest undecided arm; nothing where all are decided."""
    supervised = group.supervised
    if supervised is None or not rulers:
        return []
    undecided: dict[str, float] = {}
    for arm in group.on_trial:
        comparison = group.against(arm, supervised, rulers[0], "AP")
        if comparison is not None and comparison.low is not None and not comparison.decided:
            undecided[arm.label] = abs(comparison.difference or 0.0)
    if not undecided:
        return []
    label = max(undecided, key=lambda name: undecided[name])
    arm = next(arm for arm in group.on_trial if arm.label == label)
    pair = arm.summary(rulers[0], "AP"), supervised.summary(rulers[0], "AP")
    one, measured = seeds_needed(1.0, *pair), seeds_needed(undecided[label], *pair)
    if one is None or measured is None:
        return []
    text = (
        f"At the deviation measured here, a true difference of 1 {RULERS[rulers[0]]} between "
        f"{label} and {supervised.label} would need {seeds(one)} seeds an arm to be found with "
        f"power {POWER:g}"
    )
    gap = f"{undecided[label]:.1f}"
    if float(gap) > 0:  # as printed: nobody looks for a difference of 0.0
        text += f"; one as large as the {gap} measured would need {seeds(measured)}"
    text += "."
    return [Sentence(text)]


def _compared(arm: Arm, reference: Arm, measured: list[tuple[str, Comparison]]) -> Sentence:
    """One sentence about the rulers that gave the same verdict."""
    a, b = _subject(arm), _subject(reference)
    first = measured[0][1]
    if first.low is None:
        gaps = listed([f"{signed(c.difference)} {ruler}" for ruler, c in measured])
        if first.verdict == "not enough trials":
            why = f"not enough trials to tell ({first.trials}; an interval needs two an arm)"
        else:
            why = f"{first.verdict} ({first.trials}), so there is no interval"
        return Sentence(f": {gaps}, but {why}.", f"{a} against {b}")
    gaps = listed([f"{signed(c.difference)} {ruler} {interval(c)}" for ruler, c in measured])
    if first.decided:
        return Sentence(f" ({first.trials}): {gaps}.", f"{a} is {first.verdict} than {b}")
    if "correction" in first.verdict:
        finding = f"{a} and {b} are not distinguishable at {first.trials} after correction"
        return Sentence(f" for {first.family} arms: {gaps}.", finding)
    return Sentence(f": {gaps}.", f"{a} and {b} are not distinguishable at {first.trials}")


def _subject(arm: Arm) -> str:
    return "random initialisation" if arm.name in RANDOM_NAMES else arm.label
