"""Identical configurations are not called better, clear winners are found."""

import math

import numpy as np
import pytest

from raytune_llm.evaluation.first_place import rank
from raytune_llm.evaluation.metrics import mean
from raytune_llm.evaluation.terms import Better

NUM_SWEEPS = 100


def simulated(generator, gaps, *, seeds=2, records=128, between_seeds=0.02, within=0.2, better=Better.lower):
    """Losses of runs of each configuration: those of the records, a gap, luck of the seed, luck of seed and record."""
    difficulty = generator.gamma(2, 0.5, records)
    return {
        f"c{place}": [
            mean(difficulty + gap + generator.normal(0, between_seeds) + generator.normal(0, within, records), better)
            for _ in range(seeds)
        ]
        for place, gap in enumerate(gaps)
    }


def rankings(gaps, **world):
    generator = np.random.default_rng(0)
    return [rank(simulated(generator, gaps, **world), num_draws=500, seed=place) for place in range(NUM_SWEEPS)]


@pytest.mark.parametrize(
    "world",
    [
        {"gaps": [0, 0, 0]},
        {"gaps": [0, 0, 0], "between_seeds": 0.0},
        {"gaps": [0, 0, 0], "between_seeds": 0.2},
        {"gaps": [0, 0], "between_seeds": 0.2},
        {"gaps": [0] * 5, "seeds": 3},
        {"gaps": [0, 0], "records": 20},
    ],
)
def test_of_identical_configurations_at_most_5_of_100_are_called_better(world):
    assert sum(found.is_clear for found in rankings(**world)) <= 5


@pytest.mark.parametrize(
    "world", [{"gaps": [0, 0.25, 0.25]}, {"gaps": [0.2, 0, 0.2], "seeds": 3}, {"gaps": [0.2, 0], "between_seeds": 0.01}]
)
def test_a_clear_winner_is_found_in_at_least_95_of_100(world):
    best = f"c{np.argmin(world['gaps'])}"
    assert sum(found.is_clear and found.standings[0].name == best for found in rankings(**world)) >= 95


def test_those_that_may_be_as_good_are_equal_to_the_first():
    found = [one.equals for one in rankings([0, 0, 1.0])]
    assert sum(set(names) == {"c0", "c1"} for names in found) >= 95


def test_probabilities_add_up_and_the_order_is_by_the_mean():
    ranking = rank(simulated(np.random.default_rng(1), [0.1, 0, 0.05]), num_draws=1000, seed=0)
    means = [one.mean for one in ranking.standings]
    assert means == sorted(means) and sum(one.first for one in ranking.standings) == pytest.approx(1.0)
    assert all(one.mean == pytest.approx(np.mean(one.runs)) for one in ranking.standings)
    assert ranking.num_records == 128 and ranking.standings[0].as_good == 1.0


def test_more_is_better_where_the_metric_says_so():
    found = rank(simulated(np.random.default_rng(0), [0, 1.0], better=Better.higher), num_draws=200, seed=0)
    assert found.standings[0].name == "c1" and found.is_clear


def test_equal_runs_share_the_first_place():
    runs = [mean(np.ones(30), Better.higher)] * 2
    found = rank({"a": runs, "b": runs}, num_draws=200, seed=0)
    assert [one.first for one in found.standings] == [0.5, 0.5]
    assert not found.is_clear and found.equals == ["a", "b"]


def test_a_run_that_came_to_nothing_puts_its_configuration_last():
    sound = simulated(np.random.default_rng(0), [0, 0])
    broken = {"bad": [mean(np.full(128, math.nan), Better.lower), sound["c0"][0]], **sound}
    found = rank(broken, num_draws=200, seed=0)
    assert found.standings[-1].name == "bad" and found.standings[-1].first == 0.0 and "bad" not in found.equals
    assert not rank({name: broken["bad"] for name in "ab"}, num_draws=10, seed=0).is_clear


@pytest.mark.parametrize("runs", [{"a": 2}, {"a": 2, "b": 1}])
def test_too_few_are_refused(runs):
    metric = mean(np.ones(4), Better.lower)
    with pytest.raises(ValueError, match="can't rank"):
        rank({name: [metric] * count for name, count in runs.items()}, num_draws=10, seed=0)
