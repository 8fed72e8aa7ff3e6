"""What verdicts add up to, against closed forms and planted biases."""

import math

import numpy as np
import pytest
from judge_world import pair
from scipy.stats import binomtest

from raytune_llm.evaluation.compare import compare
from raytune_llm.evaluation.judging import tally
from raytune_llm.evaluation.judging.pairs import Choice, Judged

A, B, TIE = Choice.first, Choice.second, Choice.tie
WIN, LOSS, DRAW, NONE = (A, B), (B, A), (TIE, TIE), (None, A)


def judged(orders, **names):
    return [Judged(pair(i, "right", "wrong", **names), one) for i, one in enumerate(orders)]


@pytest.mark.parametrize(("count", "of"), [(0, 0), (0, 1), (3, 3), (5, 10), (9, 10), (40, 100), (700, 2000)])
def test_the_binomial_test_is_scipy_s(count, of):
    expected = binomtest(count, of).pvalue if of else 1.0
    assert tally.binomial_p(count, of) == pytest.approx(expected, rel=1e-9)


def test_wilson_s_interval():
    low, high = tally.Share(45, 50).interval
    expected = binomtest(45, 50).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert math.isnan(tally.Share(0, 0).value)


def test_a_planted_order_bias_is_found():
    found = tally.order_bias(judged([(A, A)] * 9 + [(B, B)] + [WIN] * 5 + [NONE] * 3 + [DRAW]))
    assert (found.disagreements.count, found.disagreements.of) == (10, 16)
    assert (found.first.count, found.first.of) == (9, 10) and found.is_biased
    assert found.p_value == pytest.approx(22 / 1024)


def test_a_judge_that_disagrees_with_itself_evenly_is_not_biased():
    found = tally.order_bias(judged([(A, A), (B, B), (A, TIE), (TIE, B)] * 10))
    assert found.first.count == 20 and found.p_value == 1.0 and not found.is_biased
    assert not tally.order_bias(judged([WIN] * 50)).is_biased


def test_win_rates_are_against_the_first_system_over_what_was_judged():
    of_tuned = judged([WIN, WIN, LOSS, DRAW, (A, A), NONE])
    of_champion = judged([DRAW, LOSS, WIN, NONE, WIN, WIN], system="champion")
    direct = judged([LOSS] * 6, other="champion")
    rates = tally.win_rates([*of_tuned, *of_champion, *direct], ("base", "champion", "tuned"), 8)
    assert {name: metric.whole() for name, metric in rates.items()} == {
        "base": 0.5,
        "champion": pytest.approx((0.5 + 0 + 1 + 1) / 4),
        "tuned": pytest.approx((1 + 1 + 0 + 0.5) / 4),
    }
    systems = {name: {"eval/win_rate": metric} for name, metric in rates.items()}
    difference = compare(systems, num_draws=200, seed=0).difference("eval/win_rate", "tuned", "base")
    assert difference.value == pytest.approx(0.125) and difference.num_differing == 3
    assert tally.win_rates(judged([NONE] * 3), ("base", "tuned"), 3) is None


def test_win_rate_has_the_interval_of_a_mean():
    rates = tally.win_rates(judged([WIN] * 30 + [LOSS] * 10), ("base", "tuned"), 40)
    systems = {name: {"eval/win_rate": metric} for name, metric in rates.items()}
    found = compare(systems, num_draws=2000, seed=0).metrics["eval/win_rate"]["tuned"]
    half = 1.96 * np.sqrt(0.75 * 0.25 / 40)
    assert (found.low, found.high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.03)


def test_agreement_with_labels():
    right = judged([WIN] * 6 + [DRAW] * 2 + [LOSS] + [NONE])
    wrong = [Judged(pair(i, "wrong", "wronger"), one) for i, one in enumerate([DRAW, DRAW, WIN])]
    unlabelled = [Judged(pair(0, "x", "y", reference=""), WIN)]
    unasked = [Judged(pair(0, "right", "right"), DRAW, asked=False)]
    found = tally.agreement_with_labels([*right, *wrong, *unlabelled, *unasked], are_labels=True)
    assert (found.agrees.count, found.agrees.of, found.num_ties, found.num_against) == (6, 9, 2, 1)
    observed, chance = 8 / 12, (9 * 7 + 3 * 4 + 0 * 1) / 144
    assert found.kappa == pytest.approx((observed - chance) / (1 - chance))
    assert tally.agreement_with_labels(right, are_labels=False).kappa is None
    assert tally.agreement_with_labels(unlabelled, are_labels=True).kappa is None


def test_agreement_with_people():
    found = tally.agreement_with_people(judged([WIN, WIN, DRAW, LOSS, NONE], system="chosen", other="rejected"))
    assert (found.agrees.count, found.agrees.of, found.num_ties, found.num_against) == (2, 4, 1, 1)


def test_kappa():
    assert tally.kappa([1, 0, 1, 0], [1, 0, 1, 0]) == 1.0
    assert tally.kappa([1, 1, 0, 0], [1, 0, 1, 0]) == 0.0
    assert tally.kappa([1, 1], [1, 1]) is None
