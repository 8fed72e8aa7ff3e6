"""Which points are proposed: each once, whatever was tried before, the same after a restart."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytune_llm.errors import InputError
from raytune_llm.sweep.axes import Axis, Points, identity
from raytune_llm.sweep.plan import Plan
from raytune_llm.sweep.search.base import Memory, Tried
from raytune_llm.sweep.search.grid import Grid
from raytune_llm.sweep.search.optuna import Optuna
from raytune_llm.sweep.search.random import Random

RATE = Axis(low=0.1, high=10, distribution="log_uniform")
SIZE = Axis(choices=(8, 4, 16, 1))
DROPOUT = Axis(choices=(0.0, 0.1), when={"size": (8, 16)})
MIXED = Plan({"rate": RATE, "size": SIZE, "dropout": DROPOUT, "schedule": Axis(choices=("linear", "constant"))}, (9,))
DISCRETE = Plan({"dropout": DROPOUT, "size": SIZE, "seed": Axis(low=1, high=3, distribution="int_uniform")}, (9,))


@st.composite
def plans(draw, most=4):
    """Spaces of choices, some with conditions on axes before them."""
    axes = {}
    for key in "abcde"[: draw(st.integers(1, most))]:
        choices = tuple(range(draw(st.integers(1, 3))))
        parents = draw(st.lists(st.sampled_from(sorted(axes)), max_size=2, unique=True)) if axes else []
        when = {parent: tuple(draw(st.sets(st.sampled_from(axes[parent].choices), min_size=1))) for parent in parents}
        axes[key] = Axis(choices=choices, when=when)
    order = draw(st.permutations(sorted(axes)))
    return Plan({key: axes[key] for key in order}, (9,), dict.fromkeys(axes, 0))


def by_hand(plan):
    """All points, from the whole product of the choices."""
    found = set()
    for values in itertools.product(*(axis.choices for axis in plan.axes.values())):
        point = dict(zip(plan.axes, values, strict=True))
        while any(not plan.axes[key].is_met(point) for key in point):
            point = {key: value for key, value in point.items() if plan.axes[key].is_met(point)}
        found.add(identity(point))
    return found


def over(point, cost=1.0):
    return Tried(values=point, cost=cost, is_over=True)


def proposed(search, plan, tried=(), seed=0, cost=lambda point: 1.0):
    """All proposals, each of which is over before the next."""
    tried = list(tried)
    before = len(tried)
    while (point := search.propose(plan, len(tried) - before, tried, seed)) is not None:
        tried.append(over(point, cost(point)))
    return [trial.values for trial in tried[before:]]


@given(plans())
def test_points_are_counted_and_found_each_once(plan):
    points = list(Points(plan.axes))
    assert plan.num_points() == len(points) == len(by_hand(plan))
    assert {identity(point) for point in points} == by_hand(plan)
    assert all(plan.contains(point) and plan.completed(point) == point for point in points)
    assert all(list(point) == [key for key in plan.axes if key in point] for point in points)


@given(plans(), st.data())
def test_a_grid_proposes_what_was_not_tried_each_point_once(plan, data):
    points = list(plan.points)
    known = data.draw(st.lists(st.sampled_from(points), max_size=6))
    others = [{"a": 7, "z": 1}, {**known[0], "z": 1}] if known else []
    found = proposed(Grid(), plan, [over(point) for point in data.draw(st.permutations([*known, *others]))])
    assert [identity(point) for point in found] == [
        identity(point) for point in points if identity(point) not in set(map(identity, known))
    ]


@given(plans(), st.integers(0, 30))
def test_a_grid_proposes_the_same_after_a_restart(plan, index):
    search, tried = Grid(), []
    for place in range(index):
        point = search.propose(plan, place, tried, 0)
        assert point == Grid().propose(plan, place, tried, 0)
        if point is None:
            break
        tried.append(over(point))


@given(plans())
def test_a_grid_can_be_asked_before_any_trial_is_made(plan):
    assert [Grid().propose(plan, place, [], 0) for place in range(plan.num_points())] == list(plan.points)


def test_a_grid_without_conditions_changes_its_first_axis_fastest():
    plan = Plan({"a": Axis(choices=(2, 1)), "b": Axis(choices=("x", "y"))}, (9,))
    assert proposed(Grid(), plan) == [{"a": 2, "b": "x"}, {"a": 1, "b": "x"}, {"a": 2, "b": "y"}, {"a": 1, "b": "y"}]
    assert proposed(Grid(), Plan({}, (9,))) == [{}]


def test_a_grid_that_is_extended_has_its_further_points_only():
    small, large = (Plan({"a": Axis(choices=choices)}, (9,)) for choices in ((1, 2), (1, 2, 3)))
    search = Grid()
    tried = [over(point) for point in proposed(search, small)]
    assert proposed(search, large, tried) == [{"a": 3}]
    wider = Plan({"a": Axis(choices=(1, 2)), "b": Axis(choices=(0, 1))}, (9,), {"a": 1, "b": 0})
    assert proposed(search, wider, tried) == [{"a": 1, "b": 1}, {"a": 2, "b": 1}], "the job's own b is 0"


def test_a_grid_needs_choices():
    with pytest.raises(InputError, match=r"sweep\.space\.rate=a range"):
        Grid().check(MIXED)


def test_first_points_of_the_space_are_counted_once():
    plan = Plan({"size": SIZE}, (9,), {"size": 8}, first=({"size": 8}, {"size": 2}))
    assert Grid().num_trials(plan) == 3
    assert Random(trials=9).num_trials(plan) == 3 and Random(trials=2).num_trials(plan) == 2


def test_a_draw_follows_from_seed_and_place():
    assert [Random(trials=9).propose(MIXED, place, [], 1) for place in (3, 4)] == [
        Random(trials=5).propose(MIXED, place, [], 1) for place in (3, 4)
    ]
    assert Random(trials=9).propose(MIXED, 3, [], 2) != Random(trials=9).propose(MIXED, 3, [], 1)
    assert Random(trials=3).propose(MIXED, 3, [], 1) is None


@pytest.mark.parametrize("search", [Random(trials=10**6), Optuna(trials=10**6)])
@settings(deadline=None, max_examples=20)
@given(plan=plans(most=3), seed=st.integers(0, 9))
def test_draws_of_a_discrete_space_are_all_of_it_each_once(search, plan, seed):
    found = proposed(search, plan, seed=seed)
    assert len(found) == plan.num_points() and set(map(identity, found)) == by_hand(plan)


@pytest.mark.parametrize("kind", [Random, Optuna])
def test_draws_are_points_of_the_space(kind):
    for plan in (MIXED, DISCRETE):
        found = proposed(kind(trials=15), plan, cost=lambda point: point["size"])
        assert len(found) == 15 and all(map(plan.contains, found))
        assert all(
            type(point["size"]) is int and list(point) == [k for k in plan.axes if k in point] for point in found
        )
        assert {"dropout" in point for point in found} == {True, False}


def cost_of(point):
    """Least at rate 2 and size 16 without dropout."""
    return math.log(point["rate"] / 2) ** 2 + abs(math.log(point["size"] / 16)) + point.get("dropout", 0.2)


def swept(search, seed, running=3):
    """Trials of which so many run at a time."""
    tried, live = [], []
    for place in range(search.trials):
        if len(live) == running:
            done = live.pop(0)
            tried[done] = over(tried[done].values, cost_of(tried[done].values))
        tried.append(Tried(values=search.propose(MIXED, place, tried, seed), cost=None, is_over=False))
        live.append(place)
    return tried


def test_tpe_learns():
    def best(search):
        return [min(cost_of(trial.values) for trial in swept(search, seed)) for seed in range(5)]

    assert sum(best(Optuna(trials=30))) < 0.8 * sum(best(Random(trials=30)))


def test_tpe_proposes_the_same_after_a_restart():
    tried = swept(Optuna(trials=20), seed=3)
    assert swept(Optuna(trials=20), seed=3) == tried and swept(Optuna(trials=20), seed=4) != tried
    kept = Optuna(trials=30)
    for count in (5, 12, 13, 20):
        now = tried[:count]
        assert kept.propose(MIXED, count, now, 3) == Optuna(trials=30).propose(MIXED, count, now, 3)


def test_tpe_learns_from_points_that_others_asked_for_where_they_are_of_the_space():
    known = [{"rate": rate, "size": 16, "dropout": 0.0, "schedule": "linear"} for rate in (1.6, 1.8, 2.0, 2.1, 2.3)]
    known += [
        {"rate": rate, "size": size, "schedule": "linear"} for rate in (0.1, 0.3, 1.0, 4.0, 9.0) for size in (1, 4)
    ]
    known = [point | {"schedule": schedule} for point in known for schedule in ("linear", "constant")]
    tried = [over(point, cost_of(point)) for point in known]

    def costs(kind):
        return [cost_of(kind(trials=10).propose(MIXED, 0, tried, seed)) for seed in range(20)]

    assert sum(costs(Optuna)) < 0.7 * sum(costs(Random))
    outside = [over({**trial.values, "decay": 0.1}, trial.cost) for trial in tried]
    assert Optuna(trials=10).propose(MIXED, 0, outside, 1) == Random(trials=10).propose(MIXED, 0, tried, 1)


def test_tpe_bears_trials_that_failed_or_diverged():
    costs = [None, math.inf, math.nan, 1.0]
    points = [{"rate": 1.0 + i, "size": 8, "dropout": 0.0, "schedule": "linear"} for i in range(12)]
    tried = [over(point, costs[place % 4]) for place, point in enumerate(points)]
    assert MIXED.contains(Optuna(trials=12).propose(MIXED, 0, tried, 0))


def test_what_is_remembered_is_brought_up_to_date_and_forgotten_where_trials_differ():
    memory, points = Memory(), list(DISCRETE.points)[:4]
    tried = [over(point) for point in points]
    seen = memory.of(DISCRETE, tried[:2])
    assert seen.num_points == 2 and memory.of(DISCRETE, tried) is seen and seen.num_points == seen.count == 4
    assert memory.of(DISCRETE, tried[1:]) is not seen
    assert memory.of(MIXED, tried).num_points == 0
