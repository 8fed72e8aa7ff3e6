import dataclasses

import pytest

from raytune_llm.errors import InputError
from raytune_llm.jobs import commands
from raytune_llm.jobs.config import load
from raytune_llm.sweep.axes import Axis, outward
from raytune_llm.sweep.plan import make_plan
from raytune_llm.sweep.space import Sweep, first_points
from raytune_llm.training.config import Schedule, value_of


def config_of(schedule=Schedule.constant, *overrides):
    job = load("sweep", ["model=demo", "data=demo_sarcasm", "tuning.steps=200", "tuning.adapter_size=8", *overrides])
    config = job.trial_config()
    return dataclasses.replace(config, tuning=dataclasses.replace(config.tuning, schedule=schedule))


def plan(config, sweep):
    return make_plan(config, sweep.axes(), sweep.first)


def sweep(space, *first):
    rest = dict.fromkeys(field.name for field in dataclasses.fields(Sweep))
    return Sweep(**rest | {"space": space, "first": list(first)})


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
        ({"min": 0}, "{min, max, distribution, when}"),
        ([], "at least one value"),
        ([[1], [2]], "numbers, texts, true, false and null as choices"),
        ({"choices": []}, "at least one value"),
        ({"choices": [1], "min": 1}, "{choices, when}"),
        ({"min": 1, "max": 2, "wen": {"seed": 1}}, "{min, max, distribution, when}"),
        ({"when": {"seed": 1}}, "choices, or min and max, next to when"),
        ({"choices": [1], "when": 8}, "{KEY: [VALUE, …]}"),
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


DROPOUT = {"choices": [0.0, 0.1], "when": {"tuning.adapter_size": [8, 16]}}


def conditional(**axes):
    return {"tuning": {"adapter_size": [1, 8, 16], **axes}, "adapter": {"dropout": DROPOUT}}


def test_a_condition_gives_a_key_to_some_points_only():
    p = plan(config_of(), sweep(conditional()))
    assert p.axes["adapter.dropout"].when == {"tuning.adapter_size": (8, 16)}
    assert {tuple(point.values()) for point in p.points} == {(1,), (8, 0.0), (8, 0.1), (16, 0.0), (16, 0.1)}
    assert p.num_points() == 5
    assert p.values({"tuning.adapter_size": 1}) == {"tuning.adapter_size": 1, "tuning.steps": 200}


def test_conditions_are_written_with_dotted_or_nested_keys_and_one_value_or_several():
    nested = {"min": 0.0, "max": 0.5, "when": {"tuning": {"adapter_size": 16}, "seed": [1, 2]}}
    axis = sweep({"adapter": {"dropout": nested}}).axes()["adapter.dropout"]
    assert axis == Axis(low=0.0, high=0.5, when={"tuning.adapter_size": (16,), "seed": (1, 2)})


def test_conditions_may_be_chained():
    space = conditional() | {"seed": {"choices": [1, 2, 3], "when": {"adapter.dropout": 0.1}}}
    points = list(plan(config_of(), sweep(space)).points)
    assert len(points) == 1 + 2 + 2 * 3
    assert all(("seed" in point) == (point.get("adapter.dropout") == 0.1) for point in points)


def test_a_condition_on_a_key_that_is_no_axis_is_decided_by_the_jobs_own_value():
    space = {"adapter": {"dropout": DROPOUT}}
    assert plan(config_of(), sweep(space)).axes["adapter.dropout"] == Axis(choices=(0.0, 0.1))
    with pytest.raises(InputError, match=r"dropout\.when\.tuning\.adapter_size=\[8, 16\] .* 1, which every trial has"):
        plan(config_of(Schedule.constant, "tuning.adapter_size=1"), sweep(space))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"seed": {"choices": [1], "when": {"tuning.adapter_size": 32}}}, "it is never met"),
        ({"seed": {"choices": [1], "when": {"tuning.learning_rate_multiplier": 1.0}}}, "conditions on choices"),
        ({"seed": {"choices": [1], "when": {"seed": 1}}}, r"sweep\.space: the conditions \(when\) of seed"),
        (
            {
                "seed": {"choices": [1], "when": {"adapter.dropout": 0.1}},
                "adapter": {"dropout": {"choices": [0.1], "when": {"seed": 1}}},
            },
            "the conditions .* of seed, adapter.dropout wait for each other",
        ),
        ({"seed": {"choices": [1], "when": {"tuning.x": 1}}}, r"tuning\.x is not a key"),
        ({"seed": {"choices": [1], "when": {"tuning.steps": 5}}}, r"seed\.when\.tuning\.steps .* the same steps"),
        (
            {"tuning": {"steps": {"choices": [1, 2], "when": {"seed": 1}}}},
            r"tuning\.steps\.when is not allowed: all trials are evaluated at the same steps",
        ),
    ],
)
def test_conditions_that_can_not_be_met_are_refused(space, message):
    rates = {"min": 0.1, "max": 10, "distribution": "log_uniform"}
    tuning = {"adapter_size": [1, 8], "learning_rate_multiplier": rates, "steps": [5, 10]} | space.get("tuning", {})
    with pytest.raises(InputError, match=message):
        plan(config_of(), sweep({**space, "tuning": tuning}))


def test_a_condition_on_steps_that_are_trials_of_their_own_is_met():
    space = {"tuning": {"steps": [5, 10], "warmup_steps": {"choices": [0, 4], "when": {"tuning.steps": 10}}}}
    assert plan(config_of(Schedule.linear), sweep(space)).num_points() == 3


def test_whole_numbers_need_a_range_of_whole_numbers():
    with pytest.raises(InputError, match=r"adapter_size\.distribution=uniform .* int_uniform"):
        plan(config_of(), sweep({"tuning": {"adapter_size": {"min": 1, "max": 8}}}))


def test_a_key_that_some_trials_lack_is_checked_with_the_jobs_own_value_too():
    p = plan(config_of(), sweep({"seed": [1, 2], "tuning": {"adapter_size": {"choices": [1, 4], "when": {"seed": 2}}}}))
    assert p.candidates("tuning.adapter_size") == [4, 1, 8] and p.candidates("seed") == [1, 2]
    assert p.candidates("tuning.batch_size") == []


def test_first_points_are_whole_and_in_the_order_given():
    space = {
        "tuning": {"learning_rate_multiplier": [0.3, 1.0], **conditional()["tuning"]},
        "adapter": {"dropout": DROPOUT},
    }
    given = [{"tuning.adapter_size": 16}, {"tuning": {"adapter_size": 1, "learning_rate_multiplier": 0.5}}]
    wanted = sweep(space, *given)
    assert first_points(wanted, plan(config_of(), wanted)) == [
        {"tuning.learning_rate_multiplier": 1.0, "tuning.adapter_size": 16, "adapter.dropout": 0.0},
        {"tuning.learning_rate_multiplier": 0.5, "tuning.adapter_size": 1},
    ]


def test_first_points_may_have_keys_that_are_no_axes_and_count_once():
    given = [{"tuning.weight_decay": 0.1}, {"tuning.weight_decay": 0.0}, {"tuning.adapter_size": 8}, {"seed": 0}]
    wanted = sweep({"tuning": {"adapter_size": [1, 8]}}, *given)
    p = plan(config_of(), wanted)
    assert first_points(wanted, p) == [
        {"tuning.adapter_size": 8, "tuning.weight_decay": 0.1},
        {"tuning.adapter_size": 8},
    ]
    assert p.keys == ["tuning.adapter_size", "tuning.weight_decay"]
    assert p.candidates("tuning.weight_decay") == [0.1, 0.0]


def test_a_first_point_may_name_steps_at_which_all_trials_are_evaluated():
    wanted = sweep(GRID, {"tuning.adapter_size": 4, "tuning.steps": 50}, {"tuning.adapter_size": 4})
    assert len(first_points(wanted, plan(config_of(), wanted))) == 1
    with pytest.raises(InputError, match=r"sweep\.first\[0\]: tuning\.steps=70 .* at 50 or 100 steps"):
        plan(config_of(), sweep(GRID, {"tuning.steps": 70}))
    decaying = sweep(GRID, {"tuning.steps": 300})
    found = plan(config_of(Schedule.linear), decaying)
    assert first_points(decaying, found)[0]["tuning.steps"] == found.most_steps() == 300


def test_first_points_are_held_to_what_trials_may_differ_in():
    for key, message in (("data.max_tokens", "all trials of a sweep share one"), ("method.metric", "one metric")):
        with pytest.raises(InputError, match=rf"sweep\.first\[1\]: {key} is not allowed: .*{message}"):
            plan(config_of(), sweep(GRID, {}, {key: 8}))


def test_trials_of_larger_batches_see_more_records_and_the_plan_says_so():
    assert "at equal steps" in plan(config_of(), sweep({"tuning": {"batch_size": [4, 8]}})).sentence()
    assert "at equal steps" not in plan(config_of(), sweep({"tuning": {"batch_size": [4]}})).sentence()


def test_combinations_are_those_that_trials_may_have():
    space = {
        "scaling": {"num_workers": [1, 2]},
        "tuning": {"batch_size": {"choices": [3, 4], "when": {"scaling.num_workers": 1}}, "adapter_size": [1, 2]},
    }
    found = plan(config_of(), sweep(space, {"tuning.batch_size": 6})).combinations(
        ["tuning.batch_size", "scaling.num_workers"]
    )
    sizes = [(point.get("scaling.num_workers"), point.get("tuning.batch_size")) for point in found]
    assert sorted(sizes, key=str) == [(1, 3), (1, 4), (1, 6), (2, None)]


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
