"""Whether a sweep can still learn anything: closed forms, and sweeps whose outcome is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytune_llm.evaluation.metrics import mean
from raytune_llm.evaluation.terms import Better
from raytune_llm.sweep.resolution import FEWEST_LIKE, Curve, gain_of_more, half_width, judge, possible_gain
from raytune_llm.training.objective import Objective

LOSS = Objective("eval/loss", lower_is_better=True)
STEPS = (25, 50, 75, 100)


def curve(*costs, is_over=True):
    return Curve(steps=STEPS[: len(costs)], costs=costs, most_steps=STEPS[-1], is_over=is_over)


def judged(curves, num_pending, values, num_records=400, spread=1.0):
    """The judgement of a sweep whose trials' records scatter by `spread` around their values."""
    noise = np.random.default_rng(0).normal(scale=spread, size=(len(values), num_records))
    rows = {id: value + noise[place] - noise[place].mean() for place, (id, value) in enumerate(values.items())}
    return judge(
        LOSS, curves, num_pending=num_pending, records=lambda id: mean(rows[id], Better.lower) if id in rows else None,
        seed=0,
    )  # fmt: skip


def sweep(finals, *more):
    """Trials that are over, with these ends, and others."""
    ended = [curve(1 + final, 0.5 + final, 0.2 + final, final) for final in finals]
    return {f"t{place:04d}": one for place, one in enumerate([*ended, *more])}


# What trials to come may gain


@given(st.lists(st.floats(0, 100), min_size=8, max_size=40), st.integers(1, 100), st.floats(0.1, 10), st.floats(-9, 9))
def test_the_gain_of_more_has_the_unit_of_the_costs_and_grows_with_their_number(costs, num_more, unit, shift):
    gain = gain_of_more(costs, num_more)
    assert 0 <= gain <= gain_of_more(costs, num_more + 1) or gain == pytest.approx(0, abs=1e-9)
    scaled = gain_of_more([unit * cost + shift for cost in costs], num_more)
    assert scaled == pytest.approx(unit * gain, rel=1e-6, abs=1e-6)


def test_the_gain_of_more_in_closed_form():
    results = [5.0, 9.0, 1.0, 2.0, 3.0, 4.0, 7.0, 8.0]
    assert gain_of_more(results, 8) == pytest.approx(4 * (20**0.25 - 1) * (5.0 - 2.5))
    assert gain_of_more([*results, *[10.0] * 92], 5) == 0, "one of 21 is no better than the others, 19 times in 20"


def test_a_search_that_improves_as_it_goes_may_go_on_to_improve():
    results = [1.0 - 0.01 * place for place in range(60)]
    shuffled = list(np.random.default_rng(0).permutation(results))
    assert gain_of_more(results, 60) == pytest.approx(0.3)
    assert gain_of_more(shuffled, 60) < 0.15


def test_nothing_to_come_gains_nothing_and_few_results_tell_nothing():
    assert gain_of_more([3.0], 0) == 0
    assert gain_of_more([3.0] * 7, 1) == math.inf
    assert gain_of_more([3.0] * 9, 3) == 0


@pytest.mark.parametrize("shape", ["uniform", "exponential", "lognormal", "normal"])
@pytest.mark.parametrize("num_more", [5, 20, 60])
def test_no_more_is_gained_in_nineteen_of_twenty_sweeps(shape, num_more):
    generator, count, sweeps = np.random.default_rng(7), 40, 2000
    draws = getattr(generator, shape)(size=(sweeps, count + num_more))
    kept = [
        min(row[:count]) - min(row[count:]) <= gain_of_more(list(row[:count]), num_more) for row in draws.astype(float)
    ]
    assert np.mean(kept) > 0.94


# What running trials may gain


def test_a_running_trial_gains_at_most_what_those_like_it_gained():
    over = [curve(2.0, 1.0, 0.9, 0.8)] * (FEWEST_LIKE - 1) + [curve(2.0, 1.0, 0.8, 0.6)]
    assert possible_gain([*over, curve(2.0, 1.0, is_over=False)], 0) == 0
    assert possible_gain([*over, curve(1.0, 0.5, is_over=False)], 0) == pytest.approx(0.5 - 0.5 * 0.6)
    shifted = [replace(one, costs=[cost - 5 for cost in one.costs]) for one in (*over, curve(1.0, 0.5, is_over=False))]
    assert possible_gain(shifted, 0) == pytest.approx(0.4), "by difference where costs aren't positive"


def test_a_running_trial_unlike_all_others_may_gain_anything():
    over = [curve(2.0, 1.0, 0.9, 0.8)] * (FEWEST_LIKE - 1)
    running = curve(2.0, 1.0, is_over=False)
    assert possible_gain([*over, running], 0) == math.inf
    stopped = curve(2.0, 1.0)
    assert possible_gain([*over, stopped, running], 0) == math.inf, "stopped where this one is: it shows nothing"
    assert possible_gain([*over, curve(2.0, 1.0, 0.9), running], 0) == pytest.approx(0.0)


def test_trials_are_alike_at_the_same_share_of_their_steps():
    long = [
        Curve(steps=[100, 200, 400], costs=[2.0, 1.0, 0.5], most_steps=400, is_over=True) for _ in range(FEWEST_LIKE)
    ]
    running = curve(2.0, 1.0, is_over=False)
    assert possible_gain([*long, running], 0) == pytest.approx(0)
    assert possible_gain([*long, replace(running, costs=[2.0, 0.5])], 0) == pytest.approx(0.25)


def test_a_trial_without_a_report_counts_as_one_to_come():
    trials = list(sweep([0.5 + 0.01 * place for place in range(12)]).values())
    started = [curve(is_over=False), curve(math.inf, is_over=False)]
    assert possible_gain([*trials, *started], 1) == possible_gain(trials, 3)


# Judgements


def test_identical_configurations_stop():
    generator = np.random.default_rng(1)
    finals = 0.5 + 0.001 * generator.normal(size=12)
    trials = sweep(finals, curve(1.5, 1.0, is_over=False))
    found = judged(trials, 6, {f"t{place:04d}": final for place, final in enumerate(finals)}, spread=0.3)
    assert found.stop and found.gain < found.resolution == pytest.approx(1.96 * 0.3 * 2**0.5 / 20, rel=0.15)
    assert found.records_needed == math.ceil(400 * (found.resolution / found.gain) ** 2) > 400
    assert f"about {found.records_needed:,} eval records would decide" in found.text


def test_a_running_trial_that_leads_and_improves_does_not():
    finals = 0.5 + 0.001 * np.arange(12)
    trials = sweep(finals, curve(1.2, 0.6, is_over=False))
    found = judged(trials, 0, {f"t{place:04d}": final for place, final in enumerate(finals)}, spread=0.3)
    assert not found.stop and found.gain > 0.15 > found.resolution


def test_widely_scattered_configurations_do_not():
    finals = np.geomspace(0.5, 5.0, 12)
    found = judged(sweep(finals), 12, {f"t{place:04d}": final for place, final in enumerate(finals)}, spread=0.3)
    assert not found.stop and math.isfinite(found.resolution)


def test_more_records_decide_what_few_can_not():
    finals = np.linspace(0.5, 0.6, 12)
    values = {f"t{place:04d}": final for place, final in enumerate(finals)}
    few = judged(sweep(finals), 4, values, num_records=100)
    assert few.stop
    assert not judged(sweep(finals), 4, values, num_records=2 * few.records_needed).stop


def test_nothing_is_said_too_early():
    trials = sweep([0.5] * 3, curve(1.5, is_over=False))
    for curves in ({}, trials, sweep([math.inf] * 12)):
        found = judged(curves, 3, {})
        assert (found.stop, found.gain, found.records_needed) == (False, math.inf, None)
        assert found.text.startswith("too early")
    found = judged(sweep([0.5] * 12), 1, {"t0000": 0.5})
    assert not found.stop and math.isnan(found.resolution) and "statistics of two trials" in found.text


def test_trials_that_answer_alike_leave_nothing_to_gain():
    found = judged(sweep([0.5] * 12), 2, dict.fromkeys(("t0000", "t0001"), 0.5), spread=0.0)
    assert found.stop and found.gain == found.resolution == 0 and found.records_needed is None
    assert found.text.startswith("the remaining trials are likely to gain nothing in eval/loss")


def test_records_that_are_not_numbers_tell_nothing():
    rows = mean([math.nan] * 10, Better.lower)
    found = judge(LOSS, sweep([0.5] * 12), num_pending=1, records=lambda id: rows, seed=0)
    assert not found.stop and math.isnan(found.resolution)


def test_the_half_width_falls_with_the_root_of_the_records():
    generator = np.random.default_rng(3)
    few, many = (
        half_width([mean(generator.normal(size=count), Better.lower) for _ in range(3)], seed=0)
        for count in (200, 3200)
    )
    assert few / many == pytest.approx(4, rel=0.25)
