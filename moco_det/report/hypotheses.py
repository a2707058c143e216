"""Hypotheses in the report: declared before the runs, then held, refuted or undecided.

A trial is a start of an encoder with all that was measured of it. What one claim says of an encoder
twice is therefore paired by seed. Encoders are independent of each other, or paired by seed as well
where the hypothesis says so.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moco_det.report.document import Block, Cell, Heading, Items, Table, text
from moco_det.report.formats import number, seeds, signed
from moco_det.report.groups import NEAR_NOTHING
from moco_det.report.sentences import say
from moco_det.report.statistics import Comparison, Trials, contrast, seeds_needed, summarise
from moco_det.results.claims import EQUAL, LESS, Claim, Hypothesis, Quantity

HELD, REFUTED, UNDECIDED = "held", "refuted", "undecided"
UNLEARNED = f"AP50 below {NEAR_NOTHING:g}: nothing learned"
_TONES = {HELD: "gain", REFUTED: "loss", UNDECIDED: ""}

Values = Mapping[Quantity, Mapping[int, float]]  # by seed


@dataclass(frozen=True)
class Judged:
    """What became of a hypothesis; `seeds` per encoder would find the least effect of interest.

    The interval is at 95 %, of this claim alone. `learned` is False where in a setting of it the
    mean AP50 of every encoder is below NEAR_NOTHING: then nothing is decided.
    """

    hypothesis: Hypothesis
    verdict: str
    comparison: Comparison
    trials: str
    seeds: int | None
    learned: bool


@dataclass(frozen=True)
class Study:
    """A study's question, where it comes from, its hypotheses, and every number behind them.

    `encoders` is what the study's file says of each, `warnings` what their pre-trainings warned of.
    """

    name: str
    question: str
    source: str
    judged: Sequence[Judged]
    values: Values
    encoders: Mapping[str, str]
    warnings: Sequence[str] = ()


def judge(hypothesis: Hypothesis, values: Values, ap50: Values) -> Judged:
    """Held: the interval is above zero ("~": within the least effect of interest to both sides).

    Refuted: it is below the least effect of interest ("~": beyond it on one side). Else undecided,
    as with fewer than two trials, or where `ap50`, of the detectors behind the values, says that
    nothing was learned.
    """
    claim, least = hypothesis.claim, hypothesis.least
    terms = _samples(hypothesis, values)
    same = {(term.quantity.metric, term.quantity.setting) for term in claim.terms}
    own = len(terms) < len(claim.terms)  # the deviation is of sums, which no other encoder has
    alike = [q for q in values if (q.metric, q.setting) in same]
    pool = [] if own or len(same) > 1 else [summarise(values[q].values()) for q in alike]
    found = contrast(terms, pool)
    counts = sorted({one.n for _, one in terms})
    trials = "-".join(map(str, counts[:: max(1, len(counts) - 1)]))
    trials += " pairs" if hypothesis.paired else ""
    if len(terms) == 1:
        needed = seeds_needed(least, found.deviation, paired=True)
    else:
        size = least * math.sqrt(2 / sum(factor**2 for factor, _ in terms))
        needed = seeds_needed(size, found.deviation)
    learned = _learned(claim, ap50)
    verdict = _verdict(claim.relation, least, found) if learned else UNDECIDED
    return Judged(hypothesis, verdict, found, trials, needed if learned else None, learned)


def _learned(claim: Claim, ap50: Values) -> bool:
    best: dict[str, float] = {}  # by setting
    for quantity in (term.quantity for term in claim.terms):
        mean = summarise(ap50.get(quantity, {}).values()).mean
        if mean is not None:
            best[quantity.setting] = max(mean, best.get(quantity.setting, 0.0))
    return all(mean >= NEAR_NOTHING for mean in best.values())


def _samples(hypothesis: Hypothesis, values: Values) -> list[tuple[float, Trials]]:
    together: dict[str, list[tuple[float, Mapping[int, float]]]] = {}
    for factor, quantity in hypothesis.claim.terms:
        found = values.get(quantity, {})
        sample = "" if hypothesis.paired else quantity.encoder
        together.setdefault(sample, []).append((factor, found))
    samples = []
    for parts in together.values():
        if len(parts) == 1:
            factor, found = parts[0]
            samples.append((factor, summarise(found.values())))
            continue
        seeds = set.intersection(*(set(found) for _, found in parts))
        sums = (sum(factor * found[seed] for factor, found in parts) for seed in sorted(seeds))
        samples.append((1.0, summarise(sums)))
    return samples


def _verdict(relation: str, least: float, found: Comparison) -> str:
    if found.interval is None:
        return UNDECIDED
    low, high = found.interval
    if relation == EQUAL:
        inside, outside = -least < low and high < least, low > least or high < -least
    else:
        low, high = (-high, -low) if relation == LESS else (low, high)
        inside, outside = low > 0, high < least or high <= 0
    return REFUTED if outside else HELD if inside else UNDECIDED


def blocks(studies: Sequence[Study]) -> list[Block]:
    """Each study's question, its hypotheses in a table, and the means behind them."""
    made: list[Block] = []
    for study in studies:
        made += [Heading(study.question, study.source), _table(study.judged), _means(study)]
        if study.warnings:
            made += [text(say("pretraining_warnings")), Items(study.warnings)]
    if made:
        count = sum(len(study.judged) for study in studies)
        made.append(text(say("hypotheses_rule", count=count, limit=NEAR_NOTHING)))
    return made


def _table(judged: Sequence[Judged]) -> Table:
    body = []
    for one in judged:
        hypothesis, found = one.hypothesis, one.comparison
        digits = _digits(hypothesis.least)
        published = f"published: {hypothesis.published}" if hypothesis.published else ""
        ends = [signed(end, digits) for end in found.interval or ()]
        note = f"[{', '.join(ends)}]" if ends else found.verdict
        body.append(
            [
                Cell(hypothesis.claim.text, published),
                Cell(one.verdict, "" if one.learned else UNLEARNED, tone=_TONES[one.verdict]),
                Cell(signed(found.difference, digits), note),
                one.trials,
                f"{hypothesis.least:g}",
                seeds(one.seeds),
            ]
        )
    header = ("hypothesis", "verdict", "difference", "n", "of interest from", "seeds for that")
    return Table(say("hypotheses"), header, body, words=2)


def _means(study: Study) -> Table:
    values = study.values
    columns = list(dict.fromkeys((q.metric, q.setting) for q in values))
    body = []
    for encoder in dict.fromkeys(q.encoder for q in values):
        row = [Cell(encoder, study.encoders.get(encoder, ""))]
        for metric, setting in columns:
            trials = summarise(values.get(Quantity(encoder, metric, setting), {}).values())
            digits = 1 if trials.mean is None or abs(trials.mean) >= 10 else 2
            spread = "" if trials.std is None else f" ± {number(trials.std, digits)}"
            trial_count = f"n={trials.n}" if trials.n else ""
            row.append(Cell(number(trials.mean, digits) + spread, trial_count))
        body.append(row)
    named = [f"{metric} at {place}" if place else metric for metric, place in columns]
    header = ["encoder", *named]
    return Table(say("hypotheses_means"), header, body)


def _digits(least: float) -> int:
    """Of a difference: one more than the effect of interest has."""
    return 1 if least >= 1 or not least else 1 - math.floor(math.log10(least))


def values_csv(studies: Sequence[Study]) -> str:
    """Every number that was measured: study, encoder, metric, setting, seed, value."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("study", *Quantity._fields, "seed", "value"))
    for study in studies:
        for quantity, found in study.values.items():
            writer.writerows((study.name, *quantity, *one) for one in sorted(found.items()))
    return table.getvalue()


def lines(study: Study) -> list[str]:
    """The question, its hypotheses and warnings for a terminal."""
    said = [study.question]
    for one in study.judged:
        found, digits = one.comparison, _digits(one.hypothesis.least)
        gap = signed(found.difference, digits)
        if found.interval is not None:
            gap += f" [{', '.join(signed(end, digits) for end in found.interval)}]"
        why = "" if one.learned else f" ({UNLEARNED})"
        said.append(f"  {one.verdict:<10}{one.hypothesis.claim.text}: {gap}, n={one.trials}{why}")
    return said + [f"  warning   {one}" for one in study.warnings]
