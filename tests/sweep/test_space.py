import pytest

from raytune_llm.sweep.config import Sweep
from raytune_llm.sweep.space import Axis, outward, plan
from raytune_llm.training.config import Schedule


class FakeTuning:
    def __init__(self, schedule):
        self.schedule, self.steps = schedule, 200


class FakeJob:
    def __init__(self, schedule=Schedule.constant):
        self.tuning = FakeTuning(schedule)


def sweep(space):
    return Sweep(space=space, search=None, backend=None, scheduler=None, max_concurrent=None)


GRID = {"tuning": {"steps": [100, 50], "learning_rate_multiplier": [1.0, 3.0], "adapter_size": 4}}


def test_axes_are_named_by_their_full_keys():
    axes = sweep(GRID).axes()
    assert list(axes) == ["tuning.steps", "tuning.learning_rate_multiplier", "tuning.adapter_size"]
    assert axes["tuning.adapter_size"] == Axis(choices=(4,))


def test_steps_are_free_with_a_constant_schedule():
    p = plan(FakeJob(), sweep(GRID))
    assert p.steps_are_free and p.milestones == (50, 100)
    assert "tuning.steps" not in p.axes and p.num_points() == 2
    assert "free" in p.sentence()


@pytest.mark.parametrize("schedule", [Schedule.linear, Schedule.cosine])
def test_steps_are_trials_of_their_own_when_the_schedule_looks_at_the_horizon(schedule):
    p = plan(FakeJob(schedule), sweep(GRID))
    assert not p.steps_are_free and p.milestones == () and p.num_points() == 4


def test_steps_are_trials_when_the_schedule_itself_is_swept():
    p = plan(FakeJob(), sweep({"tuning": {"steps": [1, 2], "schedule": ["constant", "linear"]}}))
    assert not p.steps_are_free and p.num_points() == 4


def test_without_a_steps_axis_every_trial_runs_the_jobs_steps():
    assert plan(FakeJob(), sweep({"tuning": {"adapter_size": [1, 2]}})).milestones == (200,)


def test_null_takes_a_key_out():
    assert list(sweep({"tuning": {"steps": None, "adapter_size": [1]}}).axes()) == ["tuning.adapter_size"]


def test_ranges():
    axes = sweep(
        {"tuning": {"learning_rate_multiplier": {"min": 0.1, "max": 10, "distribution": "log_uniform"}}}
    ).axes()
    assert axes["tuning.learning_rate_multiplier"] == Axis(low=0.1, high=10, distribution="log_uniform")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"min": 1, "max": 0}, "min < max"),
        ({"min": 0, "max": 1, "distribution": "log_uniform"}, "min > 0 for log_uniform"),
        ({"min": 0, "max": 1, "distribution": "normal"}, "uniform, log_uniform, int_uniform"),
        ({"min": 0}, "{min, max, distribution}"),
        ([], "at least one value"),
    ],
)
def test_bad_axes_are_refused_by_their_full_key(value, message):
    with pytest.raises(ValueError, match=r"sweep\.space\.tuning\.x") as error:
        sweep({"tuning": {"x": value}})
    assert message in str(error.value)


def test_an_empty_space_is_refused():
    with pytest.raises(ValueError, match=r"sweep\.space"):
        sweep({})


def test_choices_are_ordered_from_the_jobs_own_value_outward():
    assert outward((0.1, 0.3, 1.0, 3.0, 30.0), 1.0) == (1.0, 3.0, 0.3, 0.1, 30.0)
    assert outward((1, 4, 8, 16), 8) == (8, 4, 16, 1)
    assert outward((0.0, 0.1, 0.5), 0.1) == (0.1, 0.0, 0.5)
    assert outward(("linear", "constant"), "constant") == ("linear", "constant")
    assert outward((True, False), False) == (True, False)


def test_a_plan_orders_its_axes_by_the_job():
    job = FakeJob()
    job.tuning.adapter_size = 8
    found = plan(job, sweep({"tuning": {"adapter_size": [1, 4, 8, 16], "schedule": ["linear", "constant"]}}))
    assert found.axes["tuning.adapter_size"].choices == (8, 4, 16, 1)
    assert found.axes["tuning.schedule"].choices == ("linear", "constant")
