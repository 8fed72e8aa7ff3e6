"""Which configurations of a sweep are trained again, and with which seeds."""

import pytest

from raytune_llm.errors import InputError
from raytune_llm.sweep.confirm import Confirm, Records, contenders, steps_of
from raytune_llm.sweep.plan import Axis, Plan
from raytune_llm.training.config import Outcome, Trial
from raytune_llm.training.objective import Objective, Report

LOSS = Objective("eval/loss", lower_is_better=True)
FREE = Plan({"tuning.adapter_size": Axis(choices=(1, 4, 16))}, (20, 40))
FIXED = Plan({"tuning.adapter_size": Axis(choices=(1, 4, 16))}, (40,))
SIZE = "tuning.adapter_size"


def outcome(id, losses, ended="complete", **values):
    reports = tuple(Report(step=10 * place, metrics={"eval/loss": loss}) for place, loss in enumerate(losses, 1))
    best = min(reports, key=lambda report: report.metrics["eval/loss"], default=None)
    trial = Trial(id=id, values={key.replace("__", "."): value for key, value in values.items()})
    return Outcome(trial=trial, reports=reports, best=best, checkpoint=None, seconds=1.0, ended=ended)


OUTCOMES = [
    outcome("a", [5, 4, 3, 2], tuning__adapter_size=1),
    outcome("b", [4, 1, 2, 3], tuning__adapter_size=4),
    outcome("c", [6, 5], ended="scheduler", tuning__adapter_size=16),
    outcome("d", [], ended="failed: x", tuning__adapter_size=8),
]


def confirm(top=3, seeds=2):
    return Confirm(top=top, seeds=seeds, records=Records.auto)


def test_the_first_configurations_as_long_as_their_best_needs():
    found = contenders(OUTCOMES, FREE, LOSS, confirm(), own_seed=0)
    assert [one.trial for one in found] == ["b", "a", "c"]
    assert [one.points[0]["tuning.steps"] for one in found] == [20, 40, 20]
    assert [one.trial for one in contenders(OUTCOMES, FREE, LOSS, confirm(top=2), own_seed=0)] == ["b", "a"]


def test_without_a_free_steps_axis_they_are_as_long_as_they_were():
    found = contenders(OUTCOMES, FIXED, LOSS, confirm(), own_seed=0)
    assert all("tuning.steps" not in point for one in found for point in one.points)
    assert [steps_of(one.row, FIXED, 40) for one in found] == [40, 40, 40]


def test_seeds_are_all_different_and_the_same_whenever_they_are_asked_for():
    found = contenders(OUTCOMES, FREE, LOSS, confirm(seeds=3), own_seed=0)
    seeds = [point["seed"] for one in found for point in one.points]
    assert len(set(seeds)) == 9 and 0 not in seeds
    assert found == contenders(OUTCOMES[::-1], FREE, LOSS, confirm(seeds=3), own_seed=0)
    assert seeds[0] != contenders(OUTCOMES, FREE, LOSS, confirm(), own_seed=1)[0].points[0]["seed"]


def test_trials_that_differ_in_their_seeds_alone_are_configurations():
    same = [outcome(name, [3, 2], seed=seed) for name, seed in (("a", 1), ("b", 2))]
    found = contenders(same, Plan({"seed": Axis(choices=(1, 2))}, (20,)), LOSS, confirm(), own_seed=0)
    assert len({point["seed"] for one in found for point in one.points} | {1, 2}) == 6


def test_one_configuration_has_nothing_to_be_compared_with():
    assert contenders(OUTCOMES[:1], FREE, LOSS, confirm(), own_seed=0) == []
    assert contenders(OUTCOMES, FREE, LOSS, confirm(top=0), own_seed=0) == []
    assert contenders(OUTCOMES, FREE, LOSS, confirm(seeds=0), own_seed=0) == []


@pytest.mark.parametrize(("values", "key"), [({"top": 1}, "top=1"), ({"seeds": 1}, "seeds=1"), ({"top": -1}, "top=-1")])
def test_one_of_them_is_not_enough(values, key):
    with pytest.raises(InputError, match=rf"sweep\.confirm\.{key} is not allowed; allowed: ≥ 2, or 0"):
        confirm(**values)
