import dataclasses

import pytest

from raytune_llm.errors import InputError
from raytune_llm.jobs import commands
from raytune_llm.jobs.config import load
from raytune_llm.sweep.plan import Axis, make_plan, outward
from raytune_llm.sweep.space import Sweep
from raytune_llm.training.config import Schedule, value_of


def config_of(schedule=Schedule.constant, *overrides):
    job = load("sweep", ["model=demo", "data=demo_sarcasm", "tuning.steps=200", "tuning.adapter_size=8", *overrides])
    config = job.trial_config()
    return dataclasses.replace(config, tuning=dataclasses.replace(config.tuning, schedule=schedule))


def plan(config, sweep):
    return make_plan(config, sweep.axes())


def sweep(space):
    return Sweep(space=space, search=None, backend=None, scheduler=None, max_concurrent=None)


GRID = {"tuning": {"steps": [100, 50], "learning_rate_multiplier": [1.0, 3.0], "adapter_size": 4}}


def test_axes_are_named_by_their_full_keys():
    axes = sweep(GRID).axes()
    assert list(axes) == ["tuning.steps", "tuning.learning_rate_multiplier", "tuning.adapter_size"]
    assert axes["tuning.adapter_size"] == Axis(choices=(4,))


def test_steps_are_free_with_a_constant_schedule():
    p = plan(config_of(), sweep(GRID))
    assert p.steps_are_free and p.milestones == (50, 100)
    assert "tuning.steps" not in p.axes and p.num_points() == 2
    assert "free" in p.sentence()


@pytest.mark.parametrize("schedule", [Schedule.linear, Schedule.cosine])
def test_steps_are_trials_of_their_own_when_the_schedule_looks_at_the_horizon(schedule):
    p = plan(config_of(schedule), sweep(GRID))
    assert not p.steps_are_free and p.milestones == () and p.num_points() == 4


def test_steps_are_trials_when_the_schedule_itself_is_swept():
    p = plan(config_of(), sweep({"tuning": {"steps": [1, 2], "schedule": ["constant", "linear"]}}))
    assert not p.steps_are_free and p.num_points() == 4


def test_without_a_steps_axis_every_trial_runs_the_jobs_steps():
    assert plan(config_of(), sweep({"tuning": {"adapter_size": [1, 2]}})).milestones == (200,)


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
    found = plan(config_of(), sweep({"tuning": {"adapter_size": [1, 4, 8, 16], "schedule": ["linear", "constant"]}}))
    assert found.axes["tuning.adapter_size"].choices == (8, 4, 16, 1)
    assert found.axes["tuning.schedule"].choices == ("linear", "constant")


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (
            {"data": {"max_tokens": [8, 16]}},
            r"sweep\.space\.data\.max_tokens is not allowed: all trials of a sweep share",
        ),
        (
            {"model": {"learning_rate": [0.1]}},
            r"sweep\.space\.model\.learning_rate .* allowed: seed and keys of tuning",
        ),
        ({"evaluation": {"max_examples": [8]}}, r"sweep\.space\.evaluation\.max_examples is not allowed"),
        ({"name": ["a", "b"]}, r"sweep\.space\.name is not allowed"),
        ({"better": ["lower"]}, r"sweep\.space\.better is not allowed"),
        ({"method": {"metric": ["eval/loss"]}}, r"sweep\.space\.method\.metric is not allowed: .* one metric"),
        ({"tuning": {"x": [1]}}, r"tuning\.x is not a key of this job; at 'x' it has \['steps'"),
        ({"tuning": [1]}, r"sweep\.space\.tuning is not allowed"),
    ],
)
def test_an_axis_that_trials_cannot_differ_in_is_refused(axis, message):
    with pytest.raises(InputError, match=message):
        plan(config_of(), sweep(axis))


def test_axes_of_what_a_trial_has_are_taken():
    axes = {
        "adapter": {"dropout": [0.0]},
        "scaling": {"cpus_per_worker": [1.0]},
        "seed": [1, 2],
        "tuning": {"steps": [4]},
    }
    assert set(plan(config_of(), sweep(axes)).axes) == {"adapter.dropout", "scaling.cpus_per_worker", "seed"}


def test_a_sweep_of_data_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(commands, "prepare_job", None)
    job = load("sweep", ["model=demo", "data=demo_sarcasm", "sweep.space.data.max_tokens=[32,64]"])
    with pytest.raises(InputError, match=r"sweep\.space\.data\.max_tokens"):
        commands.run_sweep(job)


def test_a_trials_values_make_its_config():
    config = config_of().with_values({"tuning.steps": 5, "tuning.schedule": "linear", "adapter.alpha": 2.0, "seed": 3})
    assert (config.tuning.steps, config.tuning.schedule, config.adapter.alpha) == (5, Schedule.linear, 2.0)
    assert config.seed == value_of(config, "seed") == 3
    for unknown in ("tuning.x", "data.train", "seed.x"):
        with pytest.raises(InputError, match="is not a key"):
            config.with_values({unknown: 1})
