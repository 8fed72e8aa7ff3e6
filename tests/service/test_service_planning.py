"""From requests to commands: what each composes to is what was asked for, and no text of a client is more than a
value."""

import dataclasses
import json
import math
import string

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hypothesis import given, settings
from hypothesis import strategies as st

from raytune_llm.jobs.check import check_data
from raytune_llm.jobs.config import load
from raytune_llm.jobs.overrides import hydra_overrides
from raytune_llm.jobs.prepare import prepare
from raytune_llm.jobs.schema import CheckJob, SweepJob, TrainJob
from raytune_llm.methods.base import Method
from raytune_llm.models.cost import GPU_RATE
from raytune_llm.service import planning
from raytune_llm.service.hyperparameters import eval_every, is_swept, space_of, warmup_steps
from raytune_llm.service.planning import DataFacts, check_command, plan
from raytune_llm.service.records import DataRef, TuningRequest, new_id
from raytune_llm.serving.api.errors import ApiError
from raytune_llm.stores.choices import name_of

SERVICE = load("service", ["model=demo,smollm2-135m"]).service
FACTS = DataFacts(train_records=100, train_tokens=5000, parameters=1_000_000)
EXPLICIT = {"n_epochs": 3, "batch_size": 8, "learning_rate_multiplier": 0.5}


def request_of(**changes):
    given = {
        "id": new_id("ftjob"),
        "owner": "0123456789abcdef",
        "created": 0,
        "api": "openai",
        "method": "sft",
        "model": "demo",
        "base": "demo",
        "init_adapter": None,
        "training": DataRef(name="file-1", location="/data/train.jsonl"),
        "validation": None,
        "hyperparameters": {},
        "name": "wit-01234567",
        "suffix": "wit",
        "seed": 7,
        "metadata": {},
        "wandb": None,
    }
    return TuningRequest(**{**given, **changes})


def serving(**changes):
    return dataclasses.replace(SERVICE, **changes)


def planned(service=SERVICE, facts=FACTS, home="/home", **changes):
    return plan(request_of(**changes), facts, service, home, has_gpu=True)


def job_of(found):
    program, command, *overrides = found.command
    assert program == "raytune-llm"
    return load(command, overrides)


def refused(**changes):
    with pytest.raises(ApiError) as caught:
        planned(**changes)
    assert caught.value.status == 400
    return caught.value


def test_explicit_values_are_one_run():
    found = planned(hyperparameters=EXPLICIT)
    job = job_of(found)
    assert type(job) is TrainJob and not is_swept(request_of(hyperparameters=EXPLICIT))
    assert (job.home, job.name, job.seed) == ("/home", "wit-01234567", 7)
    assert job.run.startswith("ftjob-") and job.data.train == "/data/train.jsonl" and job.data.eval is None
    assert (job.tuning.steps, job.tuning.batch_size) == (math.ceil(300 / 8), 8)
    assert (job.tuning.learning_rate_multiplier, job.tuning.adapter_size) == (0.5, 8)
    assert found.notes == () and found.estimate.trials == 1
    assert found.estimate.epochs == pytest.approx(38 * 8 / 100) and found.estimate.tokens == 5000 * 38 * 8 // 100


def test_what_is_not_given_is_swept_and_nothing_else_is():
    found = planned(validation=DataRef(name="file-2", location="/data/eval.jsonl"))
    job = job_of(found)
    assert type(job) is SweepJob and is_swept(request_of()) and job.data.eval == "/data/eval.jsonl"
    axes = {key: axis.choices for key, axis in job.sweep.axes().items()}
    assert axes == {
        "tuning.steps": (13, 25, 38),
        "tuning.batch_size": (4, 8, 16),
        "tuning.learning_rate_multiplier": (0.3, 1.0, 3.0),
    }
    assert found.estimate.trials == 9 and found.estimate.epochs == pytest.approx(38 * 16 / 100)
    assert found.estimate.tokens == 3 * round(5000 * 38 * (4 + 8 + 16) / 100)
    assert found.estimate.device_hours == pytest.approx(4e6 * 1.5 * found.estimate.tokens / GPU_RATE / 3600)


def test_a_decaying_schedule_makes_each_step_count_a_trial():
    found = planned(serving(overrides={"tuning": {"schedule": "cosine"}}))
    assert job_of(found).tuning.schedule.value == "cosine"
    assert found.estimate.trials == 27
    assert found.estimate.tokens == 3 * round(5000 * (13 + 25 + 38) * (4 + 8 + 16) / 100)


@pytest.mark.parametrize(
    ("given", "axes"),
    [
        ({"batch_size": "auto"}, {"tuning.batch_size"}),
        ({"n_epochs": "auto"}, {"tuning.steps"}),
        ({"learning_rate_multiplier": "auto"}, {"tuning.learning_rate_multiplier"}),
        ({"adapter_size": "auto"}, {"tuning.adapter_size"}),
    ],
)
def test_one_auto_is_one_axis(given, axes):
    found = planned(hyperparameters=EXPLICIT | given)
    job = job_of(found)
    assert job.sweep.axes().keys() == axes
    [(key, axis)] = job.sweep.axes().items()
    assert found.estimate.trials == (1 if key == "tuning.steps" else len(axis.choices))
    if "batch_size" not in given:
        assert job.tuning.batch_size == 8
    if "n_epochs" not in given:
        assert job.tuning.steps == 38


def test_adapter_sizes_are_chosen_when_asked_for_and_in_vertexs_shape():
    assert job_of(planned(hyperparameters=EXPLICIT | {"adapter_size": 4})).tuning.adapter_size == 4
    assert "tuning.adapter_size" not in job_of(planned()).sweep.axes()
    assert job_of(planned(api="vertex")).sweep.axes()["tuning.adapter_size"].choices == (4, 16)
    job = job_of(planned(api="vertex", hyperparameters={"adapter_size": 2, "n_epochs": 1}))
    assert job.tuning.adapter_size == 2 and "tuning.adapter_size" not in job.sweep.axes()


def test_batches_are_not_larger_than_the_training_set_and_trials_not_longer_than_allowed():
    few = dataclasses.replace(FACTS, train_records=5)
    assert job_of(planned(facts=few)).sweep.axes()["tuning.batch_size"].choices == (4,)
    fewer = dataclasses.replace(FACTS, train_records=3)
    assert job_of(planned(facts=fewer)).sweep.axes()["tuning.batch_size"].choices == (3,)
    many = dataclasses.replace(FACTS, train_records=40_000)
    found = planned(facts=many, hyperparameters={"n_epochs": 3, "batch_size": 8})
    assert job_of(found).tuning.steps == 2000
    assert found.notes == ("3 epochs would take 15000 steps; a trial has at most 2000 here, which are 0.4 epochs",)
    assert found.estimate.epochs == 0.4
    assert job_of(planned(facts=many)).sweep.axes()["tuning.steps"].choices == (2000,)


@pytest.mark.parametrize("records", [1, 7, 10, 64, 97, 1000, 12_345, 10**6])
@pytest.mark.parametrize("epochs", [1, 3, 10])
def test_a_trial_is_evaluated_about_ten_times(records, epochs):
    space = space_of({"n_epochs": epochs, "batch_size": 4}, records, SERVICE.auto)
    every = eval_every(space)
    times = space.steps / every
    assert 1 <= every <= space.steps and (every == 1 or 5 <= times <= 20)
    assert 0 <= warmup_steps(space) <= min(10, space.steps // 10)


def test_epochs_end_in_evaluations_where_they_can_be_divided():
    space = space_of({"n_epochs": 3, "batch_size": 8}, 800, SERVICE.auto)
    assert space.epoch_steps == 100 and eval_every(space) == 25
    assert job_of(planned(serving(overrides={"tuning": {"eval_every": 7}}))).tuning.eval_every == 7


def test_the_operators_keys_are_of_every_job_and_requests_decide_theirs():
    overrides = {
        "tuning": {"weight_decay": 0.1, "batch_size": 2, "adapter_size": 4},
        "sweep": {"scheduler": {"grace_steps": 3}},
        "tracking": {"wandb": {"mode": "offline"}},
        "model": {"from_pretrained": {"use_kernels": False}},
        "evaluation": {"max_examples": 9},
        "home": "/elsewhere",
        "seed": 1,
    }
    service = serving(overrides=overrides)
    job = job_of(planned(service, hyperparameters=EXPLICIT))
    assert (job.tuning.weight_decay, job.tuning.batch_size, job.tuning.adapter_size) == (0.1, 8, 4)
    assert (job.home, job.seed, job.evaluation.max_examples) == ("/home", 7, 9)
    assert job.model.from_pretrained == {"use_kernels": False}
    assert job_of(planned(service)).sweep.scheduler.grace_steps == 3
    checked = check_command(request_of(), service, "/home", "/home/checked")
    job = load("check", checked[2:])
    assert checked[:2] == ("raytune-llm", "check") and type(job) is CheckJob
    assert (job.report, job.evaluation.max_examples, job.data.train) == ("/home/checked", 9, "/data/train.jsonl")


def test_a_base_of_several_is_chosen_by_its_name():
    job = job_of(planned(hyperparameters=EXPLICIT, base="smollm2-135m", model="smollm2-135m"))
    assert job.model == load("check", ["model=smollm2-135m", "data=demo_chat"]).model
    assert refused(base="gpt-4o", model="gpt-4o").param == "model"


def test_preferences():
    job = job_of(planned(method="dpo", hyperparameters=EXPLICIT | {"beta": 0.2}))
    assert job.method.beta == 0.2 and job.method.metric == "eval/loss"
    job = job_of(planned(method="dpo", hyperparameters=EXPLICIT | {"beta": "auto"}))
    assert {key: axis.choices for key, axis in job.sweep.axes().items()} == {"method.beta": (0.1, 0.5)}
    assert job.method.metric == "eval/rewards/accuracies"
    swept = load("check", ["model=demo", "data=demo_preference", "method=dpo", f"method.metric={job.method.metric}"])
    assert prepare(swept).better.value == "higher", "the records have this metric"


@pytest.mark.parametrize("method", ["rlhf", "dss"])
def test_other_methods(method):
    assert name_of(job_of(planned(method=method, hyperparameters=EXPLICIT)).method, Method) == method
    assert refused(method=method, hyperparameters={"beta": 0.1}).code == "unknown_parameter"


def test_teachers_are_offered_bases_and_versions_of_the_owner():
    def teacher(name, **more):
        request = request_of(method="distill", hyperparameters=EXPLICIT | {"teacher": name}, **more)
        teachers = {"demo": "/demo", "smollm2-135m": "/models/smol lm, 2"}
        return job_of(plan(request, FACTS, SERVICE, "/home", has_gpu=False, teachers=teachers)).method.teacher

    assert teacher("smollm2-135m") == "/models/smol lm, 2"
    assert teacher("demo") is None, "its own base"
    assert teacher("wit-01234567@3") == "wit-01234567@3"
    for name in ("wit-fedcba98@3", "gpt-4o", "auto", "/etc", "wit-01234567@3 x=1"):
        with pytest.raises(ApiError, match="neither an offered base"):
            teacher(name)


def test_training_continues_in_a_version():
    job = job_of(planned(init_adapter="wit-01234567@3", hyperparameters=EXPLICIT | {"adapter_size": "auto"}))
    assert type(job) is TrainJob and job.method.init_adapter == "wit-01234567@3"
    job = job_of(planned(init_adapter="wit-01234567@3", api="vertex"))
    assert "tuning.adapter_size" not in job.sweep.axes()
    assert refused(init_adapter="wit-01234567@3", hyperparameters={"adapter_size": 4}).param == "adapter_size"
    assert refused(init_adapter="wit@1 promote=always").param == "model"


def test_weights_and_biases():
    wandb = {"project": "my project", "entity": "team", "name": "first", "tags": ["a", "b:c"]}
    service = serving(overrides={"tracking": {"wandb": {"mode": "offline"}}})
    job = job_of(planned(service, wandb=wandb))
    run = job.tracking["wandb"]
    assert (run.project, run.entity, run.tags, run.mode.value) == (
        "my project",
        "team",
        ["a", "b:c", "first"],
        "offline",
    )
    assert job_of(planned(service)).tracking == {}
    both = serving(overrides={"tracking": "tensorboard"})
    found = planned(both, wandb={"project": "p"}).command
    assert "tracking=[tensorboard,wandb]" in found
    for wrong in (
        {"project": "a/b"},
        {"project": "${oc.env:HOME}"},
        {"project": "p", "tags": ["x\ny"]},
        {"entity": "e"},
    ):
        assert refused(wandb=wrong).param == "integrations"


@pytest.mark.parametrize("name", ["n_epochs", "batch_size", "learning_rate_multiplier", "adapter_size"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, "three", "", "1", [2], None, 10.5])
def test_wrong_values_are_refused_by_name(name, value):
    if value == 10.5 and name in ("n_epochs", "learning_rate_multiplier"):
        assert planned(hyperparameters=EXPLICIT | {name: value}).command
        return
    assert refused(hyperparameters=EXPLICIT | {name: value}).param == name


def test_unknown_hyperparameters_and_methods_are_refused():
    assert refused(hyperparameters={"tuning.steps": 3}).code == "unknown_parameter"
    assert refused(method="full").param == "method"
    assert refused(name="../wit").param == "suffix"


LOCATIONS = [
    "/data/a,b.jsonl",
    "/data/a b (1).jsonl",
    "/data/[x]=y{z}.jsonl",
    "/data/it's.jsonl",
    "/data/back\\slash\\.jsonl",
    "gs://bucket/tuning/x,y=z.jsonl",
    "s3://bucket/x.jsonl?region=us&x=1",
    "/data/null",
    "null",
    "/datà/é.jsonl",
    "hf:org/name:train[:20]",
]


@pytest.mark.parametrize("location", LOCATIONS)
def test_locations_survive_the_command_line(location):
    data = DataRef(name="file-1", location=location)
    for home in ("/a home, with=[all] 'of' it", "gs://bucket/home"):
        job = job_of(planned(training=data, validation=data, hyperparameters=EXPLICIT, home=home))
        assert (job.home, job.data.train, job.data.eval) == (home, location, location)


@pytest.mark.parametrize("location", ["gs://bucket/${oc.env:HOME}", "/data/../etc", "/data/x\ny", "/data/\0"])
def test_locations_that_could_mean_others_are_refused(location):
    assert refused(training=DataRef(name="x", location=location)).param == "training_file"


TEXT = st.text(string.ascii_letters + string.digits + " ,='\"\\[]{}()$:;~@!#%&*+-./<>?^_`|é", max_size=30)


def read_back(found):
    """The keys of a command with the values that Hydra reads."""
    parser = OverridesParser.create()
    parsed = [
        parser.parse_override(one) for argument in found.command[2:] for one in hydra_overrides("train", argument)
    ]
    values = [(one.key_or_group, one.value()) for one in parsed]
    return {key: value.text if isinstance(value, QuotedString) else value for key, value in values}


@settings(max_examples=100, deadline=None)
@given(location=TEXT.filter(str.strip), metadata=st.dictionaries(TEXT, TEXT, max_size=2), suffix=TEXT)
def test_no_text_of_a_client_becomes_another_key(location, metadata, suffix):
    """Whatever is sent, the command has the keys of a plain request, and the value is the text."""
    plain = read_back(planned(hyperparameters=EXPLICIT))
    location = f"gs://b/{location}"
    data = DataRef(name=location, location=location)
    try:
        found = planned(training=data, metadata=metadata, suffix=suffix, hyperparameters=EXPLICIT)
    except ApiError as error:
        assert error.param == "training_file" and ("${" in location or ".." in location)
        return
    assert read_back(found) == plain | {"data.train": location, "run": read_back(found)["run"]}


@settings(max_examples=100, deadline=None)
@given(name=st.text(string.ascii_letters + string.digits + "._- =,'\"$[]{}", min_size=1, max_size=40))
def test_names_are_names_or_refused(name):
    try:
        found = planned(name=name, hyperparameters=EXPLICIT)
    except ApiError as error:
        assert error.param == "suffix"
        return
    assert read_back(found)["name"] == name


def test_facts_are_read_from_the_report_of_a_check(tmp_path):
    job = load("check", ["model=demo", "data=demo_chat", f"report={tmp_path}"])
    check_data(job)
    facts = DataFacts.from_report(json.loads((tmp_path / "report.json").read_text()))
    lengths = [len(example["completion"].input_ids) for example in prepare(job).encoded.train.examples]
    parameters = job.model.facts.num_parameters
    assert facts == DataFacts(train_records=len(lengths), train_tokens=sum(lengths), parameters=parameters)


def test_the_default_axes_are_those_of_the_config():
    assert set(load("sweep", ["model=demo", "data=demo_chat"]).sweep.axes()) == set(planning.DEFAULT_AXES)
