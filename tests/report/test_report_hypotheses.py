"""Verdicts on declared hypotheses: what holds, what does not, and what the trials cannot tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from moco_det.report.hypotheses import (
    HELD,
    REFUTED,
    UNDECIDED,
    Judged,
    Study,
    Values,
    blocks,
    judge,
    lines,
    values_csv,
)
from moco_det.report.statistics import Trials, contrast, summarise
from moco_det.results.claims import Hypothesis, Quantity, read_claim

SPREAD = (-0.4, -0.1, 0.1, 0.4, 0.0)


def values(**means: float) -> Values:
    """Five trials per encoder around a mean, of one metric."""
    return {
        Quantity(name, "knn", ""): {seed: mean + x for seed, x in enumerate(SPREAD)}
        for name, mean in means.items()
    }


def judged(text: str, least: float, found: Values) -> Judged:
    return judge(Hypothesis(read_claim(text), least), found, {})


@pytest.mark.parametrize(
    ("claim", "least", "a", "verdict"),
    [
        ("a.knn > b.knn", 1, 52.0, HELD),
        ("a.knn > b.knn", 1, 50.5, REFUTED),  # there, and smaller than of interest
        ("a.knn > b.knn", 1, 48.0, REFUTED),
        ("a.knn > b.knn", 0, 48.0, REFUTED),
        ("a.knn > b.knn", 0, 50.1, UNDECIDED),
        ("a.knn > b.knn", 1, 50.3, REFUTED),
        ("a.knn > b.knn", 2, 50.0, REFUTED),
        ("a.knn < b.knn", 1, 48.0, HELD),
        ("a.knn < b.knn", 1, 52.0, REFUTED),
        ("a.knn ~ b.knn", 1, 50.3, HELD),
        ("a.knn ~ b.knn", 1, 52.0, REFUTED),
        ("a.knn ~ b.knn", 1, 50.9, UNDECIDED),
    ],
)
def test_a_verdict_follows_the_interval_and_the_effect_of_interest(
    claim: str, least: float, a: float, verdict: str
) -> None:
    assert judged(claim, least, values(a=a, b=50.0)).verdict == verdict


def test_two_encoders_are_compared_by_welchs_interval() -> None:
    found = values(a=52.0, b=50.0)
    one, two = (list(found[Quantity(name, "knn", "")].values()) for name in "ab")
    low, high = stats.ttest_ind(one, two, equal_var=False).confidence_interval()
    comparison = judged("a.knn > b.knn", 1, found).comparison
    assert comparison.interval == pytest.approx((low, high))


def test_what_a_claim_says_of_one_encoder_twice_is_paired_by_seed() -> None:
    level = (0.0, 20.0, 40.0, 60.0, 80.0)  # starts differ, the gain of each hardly does
    found = {
        Quantity("a", "AP", "1x"): dict(enumerate(level)),
        Quantity("a", "AP", "6x"): {s: v + 5 + SPREAD[s] for s, v in enumerate(level)},
    }
    one = judged("a.AP at 6x > a.AP at 1x", 1, found)
    low, high = stats.ttest_1samp(np.add(SPREAD, 5), 0).confidence_interval()
    assert one.verdict == HELD and one.comparison.interval == pytest.approx((low, high))


def test_encoders_are_paired_by_seed_where_the_hypothesis_says_so() -> None:
    level = (0.0, 20.0, 40.0, 60.0, 80.0)  # a start is good or bad for both
    found = {
        Quantity("a", "knn", ""): {s: v + 5 + SPREAD[s] for s, v in enumerate(level)},
        Quantity("b", "knn", ""): {**dict(enumerate(level)), 7: 90.0},
    }
    claim = read_claim("a.knn > b.knn")
    low, high = stats.ttest_1samp(np.add(SPREAD, 5), 0).confidence_interval()
    one = judge(Hypothesis(claim, 1, paired=True), found, {})
    assert one.verdict == HELD and one.comparison.interval == pytest.approx((low, high))
    assert one.trials == "5 pairs"
    assert judge(Hypothesis(claim, 1), found, {}).verdict == UNDECIDED
    few = {q: {s: v[s] for s in (0, 1)} for q, v in found.items()}
    pair = judge(Hypothesis(claim, 1, paired=True), {**few, Quantity("c", "knn", ""): {0: 1.0}}, {})
    low, high = stats.ttest_1samp(np.add(SPREAD[:2], 5), 0).confidence_interval()
    assert pair.comparison.interval == pytest.approx((low, high))  # no other encoder's deviation


def test_a_paired_trend_is_judged_by_the_rise_of_each_seed() -> None:
    level = (0.0, 20.0, 40.0, 60.0, 80.0)
    found = {
        Quantity(name, "knn", ""): {s: v + gain * (1 + SPREAD[s]) for s, v in enumerate(level)}
        for name, gain in (("a", 0.0), ("b", 1.0), ("c", 2.0))
    }
    claim = read_claim("knn rises over a, b, c")
    one = judge(Hypothesis(claim, 1, paired=True), found, {})
    low, high = stats.ttest_1samp(2 * np.add(SPREAD, 1), 0).confidence_interval()
    assert one.comparison.interval == pytest.approx((low, high))


def test_a_gain_over_another_encoder_is_paired_within_each_and_not_between() -> None:
    found: dict[Quantity, dict[int, float]] = {}
    for name, gain in (("moco", 6.0), ("sup", 2.0)):
        for seed, start in enumerate((0.0, 30.0, 10.0, 20.0, 40.0)):
            found.setdefault(Quantity(name, "AP", "1x"), {})[seed] = start
            found.setdefault(Quantity(name, "AP", "6x"), {})[seed] = start + gain + SPREAD[seed]
    text = "moco.AP at 6x - sup.AP at 6x > moco.AP at 1x - sup.AP at 1x"
    comparison = judged(text, 1, found).comparison
    low, high = stats.ttest_ind(
        np.add(SPREAD, 6), np.add(SPREAD, 2), equal_var=False
    ).confidence_interval()
    assert comparison.interval == pytest.approx((low, high))


def test_a_trend_is_judged_by_the_variance_of_its_line() -> None:
    found = values(a=50.0, b=51.0, c=52.0, d=53.0)
    comparison = judged("knn rises over a, b, c, d", 1, found).comparison
    variance = float(np.var(SPREAD, ddof=1))
    squares = [2 * (0.9**n + 0.3**n) for n in (2, 4)]
    freedom = squares[0] ** 2 / (squares[1] / 4)  # Satterthwaite's
    half = math.sqrt(variance / 5 * squares[0]) * float(stats.t.ppf(0.975, freedom))
    assert comparison.interval == pytest.approx((3 - half, 3 + half))


def test_fewer_than_two_trials_or_none_are_undecided_and_say_so() -> None:
    one = {q: {0: v[0]} for q, v in values(a=52.0, b=50.0).items()}
    for found in (one, {}, values(a=52.0)):
        assert judged("a.knn > b.knn", 1, found).verdict == UNDECIDED


def test_few_trials_draw_on_the_deviation_of_the_other_encoders() -> None:
    found = {q: dict(list(v.items())[:2]) for q, v in values(a=52.0, b=50.0, c=40.0).items()}
    alone = {q: v for q, v in found.items() if q.encoder != "c"}
    many, two = (judged("a.knn > b.knn", 1, f).comparison.interval for f in (found, alone))
    assert many is not None and two is not None and many[1] - many[0] < two[1] - two[0]


def test_a_contrast_of_two_is_the_comparison_of_two() -> None:
    one, two = summarise((1.0, 2.0, 4.0, 3.0, 2.5)), summarise((0.0, 2.0, 1.0, 0.5, 0.2))
    found = contrast([(1.0, one), (-1.0, two)])
    low, high = stats.ttest_ind(one.values, two.values, equal_var=False).confidence_interval()
    assert found.interval == pytest.approx((low, high))
    assert contrast([(1.0, one), (-1.0, Trials((), None, None))]).difference is None


def test_the_page_and_the_screen_say_verdict_interval_and_trials() -> None:
    found = values(a=52.0, b=50.0)
    one = judge(Hypothesis(read_claim("a.knn > b.knn"), 1, "Table <1>"), found, {})
    study = Study(
        "s", "Is it?", "A paper", [one], found, {"a": "MOCO.M 0.9"}, ["a: it may collapse"]
    )
    assert lines(study)[1] == "  held      a.knn > b.knn: +2.0 [+1.6, +2.4], n=5"
    assert lines(study)[2] == "  warning   a: it may collapse"
    said = repr(blocks([study]))
    words = ("Is it?", "A paper", "published: Table <1>", "+2.0", "52.0 ± 0.3", "n=5")
    for word in (*words, "MOCO.M 0.9", "a: it may collapse"):
        assert word in said
    assert blocks([]) == []
    table = values_csv([study]).splitlines()
    assert table[:2] == ["study,encoder,metric,setting,seed,value", "s,a,knn,,0,51.6"]
    assert len(table) == 11


def test_where_nobody_has_learned_to_detect_nothing_is_decided() -> None:
    a, b = Quantity("a", "AP", "six"), Quantity("b", "AP", "six")
    found = {a: dict(enumerate(SPREAD)), b: {seed: x - 9 for seed, x in enumerate(SPREAD)}}
    low, high = dict.fromkeys(range(5), 4.9), dict.fromkeys(range(5), 5.1)
    hypothesis = Hypothesis(read_claim("a.AP at six > b.AP at six"), 1)
    assert judge(hypothesis, found, {a: high, b: low}).verdict == HELD
    idle = judge(hypothesis, found, {a: low, b: low})
    assert idle.verdict == UNDECIDED and idle.seeds is None
    assert lines(Study("s", "?", "", [idle], found, {}))[1].endswith(
        "(AP50 below 5: nothing learned)"
    )
    # the same at one end of a difference of differences
    claim = read_claim("a.AP at six - b.AP at six > a.AP at one - b.AP at one")
    ends = {q._replace(setting="one"): found[b] for q in (a, b)}
    ap50 = {a: high, b: high, **dict.fromkeys(ends, low)}
    assert not judge(Hypothesis(claim, 1), {**found, **ends}, ap50).learned
