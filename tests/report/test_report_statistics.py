"""Means, deviations and intervals, against arithmetic done by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from moco_det.report.formats import duration, interval, mean_std, number, signed
from moco_det.report.statistics import (
    CONFIDENCE,
    MOST_SEEDS,
    Comparison,
    compare,
    compare_paired,
    correct,
    seeds_needed,
    summarise,
)


def test_mean_and_sample_deviation_by_hand() -> None:
    # (1 + 2 + 6) / 3 = 3; squares 4 + 1 + 9 = 14; 14 / 2 = 7
    summary = summarise([1.0, 2.0, 6.0])
    assert summary.mean == pytest.approx(3.0)
    assert summary.std == pytest.approx(math.sqrt(7.0))
    assert summary.n == 3


def test_undefined_values_are_no_trials() -> None:
    summary = summarise([None, 4.0, None])
    assert (summary.n, summary.mean, summary.std) == (1, 4.0, None)
    assert summarise([None]).mean is None
    assert summarise([]).n == 0


def test_welch_interval_by_hand() -> None:
    # a = 1, 2 and b = 3, 5: variances 0.5 and 2, squared errors 0.25 and 1, so se = sqrt(1.25);
    # df = 1.25^2 / (0.25^2 / 1 + 1^2 / 1) = 1.4706; t(0.975, 1.4706) = 6.1885; -2.5 +- 6.919
    comparison = compare(summarise([1.0, 2.0]), summarise([3.0, 5.0]))
    assert comparison.difference == pytest.approx(-2.5)
    assert comparison.low == pytest.approx(-9.4185, abs=1e-3)
    assert comparison.high == pytest.approx(4.4185, abs=1e-3)
    assert comparison.verdict == "not distinguishable"
    assert not comparison.decided


def test_intervals_and_p_are_those_of_scipy_s_tests() -> None:
    rng = np.random.default_rng(0)
    for n, m in ((2, 2), (3, 5), (10, 4)):
        ours, theirs = rng.normal(30, 1, n), rng.normal(31, 0.3, m)
        welch = stats.ttest_ind(ours, theirs, equal_var=False)
        low, high = welch.confidence_interval(CONFIDENCE)
        made = compare(summarise(ours), summarise(theirs))
        assert (made.low, made.high, made.p) == pytest.approx((low, high, welch.pvalue), rel=1e-9)
        paired = stats.ttest_rel(ours, ours**2)
        low, high = paired.confidence_interval(CONFIDENCE)
        made = compare_paired(dict(enumerate(ours)), dict(enumerate(ours**2)))
        assert (made.low, made.high, made.p) == pytest.approx((low, high, paired.pvalue), rel=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([30.0, 30.2, 30.1], [20.0, 20.1, 20.3], "higher"),
        ([20.0, 20.1, 20.3], [30.0, 30.2, 30.1], "lower"),
        ([30.0], [20.0, 20.1], "not enough trials"),
        ([30.0, 31.0], [20.0], "not enough trials"),
        ([None], [20.0, 20.1], "not measured"),
        ([30.0, 30.0], [20.0, 20.0], "no spread measured"),
    ],
)
def test_a_verdict_says_no_more_than_the_trials_allow(
    a: list[float | None], b: list[float | None], verdict: str
) -> None:
    comparison = compare(summarise(a), summarise(b))
    assert comparison.verdict == verdict
    assert (comparison.low is None) == (verdict not in ("higher", "lower"))


def test_with_few_trials_the_deviation_is_pooled_over_the_setting_by_hand() -> None:
    # n=2 and deviations 0.1, 0.4, 0.2, 0.3: Welch's squared error is (0.01 + 0.16) / 2 = 0.085, the
    # pooled variance 0.3 / 4 = 0.075 and its error less; df = 0.3^2 / 0.0354 = 2.542, where Welch's
    # are 1.125; t(0.975, 2.542) = 3.530, so that 2.4 +- 1.029
    moco, sup, random, dense = (
        summarise([mean - std / math.sqrt(2), mean + std / math.sqrt(2)])
        for mean, std in ((6.4, 0.1), (4.0, 0.4), (2.0, 0.2), (5.0, 0.3))
    )
    assert compare(moco, sup).verdict == "not distinguishable"
    found = compare(moco, sup, [random, sup, moco, dense])
    assert found.verdict == "higher"
    assert (found.low, found.high) == pytest.approx((2.4 - 1.029, 2.4 + 1.029), abs=2e-3)
    assert found.deviation == pytest.approx(math.sqrt(0.085))
    # 0.1 against 0.3: beside two arms of real spread the pooled deviation, 0.25, decides
    none, little = summarise([0.1, 0.11]), summarise([0.3, 0.31])
    assert compare(little, none).decided
    found = compare(little, none, [none, little, random, dense, summarise([9.0])])
    assert found.verdict == "not distinguishable"
    assert found.deviation == pytest.approx(math.sqrt((0.04 + 0.09 + 2 * 0.00005) / 4))


def test_from_five_trials_on_the_other_arms_say_nothing() -> None:
    five, six = summarise([30, 31, 32, 33, 35.0]), summarise([25, 26, 27, 29, 32, 33.0])
    wide = summarise([0.0, 50.0])
    assert compare(five, six, [five, six, wide]) == compare(five, six)
    four = summarise(five.values[:4])
    assert compare(four, six, [four, six, wide]) != compare(four, six)


def test_nothing_is_tested_where_no_arm_learned() -> None:
    found = compare(summarise([0.3, 0.31]), summarise([0.1, 0.11]), learned=False)
    assert (found.verdict, found.interval, found.p) == ("nothing learned", None, None)
    assert found.difference == pytest.approx(0.2)
    assert compare(summarise([]), summarise([0.1]), learned=False).verdict == "not measured"


def test_one_arm_without_spread_still_has_an_interval_and_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        comparison = compare(summarise([30.0, 30.0]), summarise([20.0, 21.0]))
    assert comparison.low is not None and math.isfinite(comparison.low)


def test_the_paired_interval_by_hand() -> None:
    # gaps 1, 2, 3: mean 2, sd 1, se 1 / sqrt(3); t(0.975, 2) = 4.3027; 2 +- 2.4842; seed 9 is alone
    comparison = compare_paired({0: 11.0, 1: 22.0, 2: 33.0, 9: 5.0}, {2: 30.0, 1: 20.0, 0: 10.0})
    assert (comparison.n, comparison.verdict) == (3, "not distinguishable")
    assert comparison.difference == pytest.approx(2.0)
    assert comparison.low == pytest.approx(2 - 2.4842, abs=1e-3)
    assert comparison.high == pytest.approx(2 + 2.4842, abs=1e-3)
    # the arms' own spread is ten times the gap: only pairing tells them apart
    noisy = {0: 10.0, 1: 20.0, 2: 30.0, 3: 40.0}
    better = {seed: value + 1 + seed / 100 for seed, value in noisy.items()}
    assert compare_paired(better, noisy).verdict == "higher"
    assert compare(summarise(better.values()), summarise(noisy.values())).decided is False


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ({0: 1.0}, {1: 1.0}, "not measured"),
        ({0: None, 1: 2.0}, {0: 1.0, 1: 1.0}, "not enough trials"),
        ({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}, "no spread measured"),
    ],
)
def test_pairs_say_no_more_than_they_allow(
    a: dict[int, float | None], b: dict[int, float | None], verdict: str
) -> None:
    assert compare_paired(a, b).verdict == verdict


def test_holm_s_correction_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.8 times 4, 3, 2, 1: 0.04, 0.06, 0.06 (not below), 0.8
    def made(p: float | None) -> Comparison:
        return Comparison(1.0, 0.1, 1.9, 3, 3, "higher", p=p)

    family = {"c": made(0.03), "a": made(0.01), "d": made(0.8), "b": made(0.02), "none": made(None)}
    corrected = correct(family)
    assert [corrected[name].p_holm for name in "abcd"] == pytest.approx([0.04, 0.06, 0.06, 0.8])
    assert corrected["a"].verdict == "higher" and corrected["a"].family == 4
    assert corrected["b"].verdict == "not distinguishable after correction"
    assert corrected["none"].p_holm is None and corrected["none"].verdict == "higher"


def test_one_comparison_needs_no_correction() -> None:
    single = compare(summarise([30.0, 30.2, 30.1]), summarise([20.0, 20.1, 20.3]))
    assert correct({"a": single})["a"].p_holm == single.p


def test_seeds_needed_are_those_of_the_tables_of_power() -> None:
    # Cohen (1988), two-sided 5 % and power 0.8: 17 an arm for one deviation, 64 for half, 26 for .8
    assert [seeds_needed(d, 1.0) for d in (1.0, 0.5, 0.8)] == [17, 64, 26]
    assert seeds_needed(-1.0, 1.0) == 17
    assert seeds_needed(100.0, 1.0) == 2
    assert seeds_needed(0.001, 1.0) == MOST_SEEDS + 1


@pytest.mark.parametrize(("effect", "pairs"), [(1.0, 10), (0.5, 34), (0.8, 15), (3.0, 4)])
def test_pairs_needed_have_the_power_of_the_paired_t_test(effect: float, pairs: int) -> None:
    def power(n: int) -> float:
        return float(stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, effect * n**0.5))

    assert seeds_needed(effect, 1.0, paired=True) == pairs
    assert power(pairs) >= 0.8 > power(pairs - 1)


def test_seeds_needed_are_unknown_without_a_deviation() -> None:
    one, single, flat = summarise([9.0, 11.0]), summarise([9.0]), summarise([9.0, 9.0])
    assert [compare(a, a).deviation for a in (single, flat)] == [None, None]
    assert compare(one, one).deviation == one.std
    assert seeds_needed(1.0, None) is None
    assert seeds_needed(0.0, 1.0) is None


def test_numbers_are_written_with_a_true_minus_and_never_as_minus_zero() -> None:
    assert number(-0.04) == "0.0"
    assert number(-1.25, 2) == "−1.25"
    assert number(None) == "–"
    assert signed(0.04) == "0.0"
    assert signed(1.44) == "+1.4"
    assert signed(-1.44) == "−1.4"
    assert mean_std(summarise([30.0])) == "30.0"
    assert mean_std(summarise([30.0, 31.0])) == "30.5 ± 0.7"
    assert interval(compare(summarise([1.0, 2.0]), summarise([3.0, 5.0]))) == "[−9.4, +4.4]"


def test_durations_are_for_people() -> None:
    assert [duration(s) for s in (4.2, 59.7, 185, 7800)] == [
        "4 s",
        "1 min 00 s",
        "3 min 05 s",
        "2 h 10 min",
    ]
