"""What the command line takes, and how it refuses the rest."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from raytune_llm.errors import InputError
from raytune_llm.jobs.config import CONF, compose, load, plain
from raytune_llm.jobs.schema import SweepJob
from raytune_llm.methods.base import Method
from raytune_llm.stores.components import all_keys, build, describe
from raytune_llm.sweep.axes import Axis
from raytune_llm.training.config import Schedule

ROOT = Path(__file__).parents[2]
DEMO = ["model=demo", "data=demo_sarcasm"]


def refused(*overrides, root="sweep"):
    with pytest.raises(InputError) as error:
        load(root, [*DEMO, *overrides])
    return str(error.value)


def test_a_job_is_typed_and_frozen():
    job = load("sweep", [*DEMO, "tuning.steps=7", "tuning.schedule=cosine"])
    assert job.tuning.steps == 7 and job.tuning.schedule is Schedule.cosine
    with pytest.raises(AttributeError):
        job.tuning.steps = 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tuning.stpes=3", "unknown key: tuning.stpes; nearest valid: tuning.steps"),
        ("+tuning.stpes=3", "unknown key: tuning.stpes; nearest valid: tuning.steps"),
        ("+typo=1", "unknown key: typo"),
        (
            "tracking=false",
            "tracking=false: expected one of the files of conf/tracking: mlflow, none, tensorboard, wandb",
        ),
        (
            "sweep/search=null",
            "sweep/search=null: expected one of the files of conf/sweep/search: grid, optuna, random",
        ),
        ("+tuning.early_stopping.patienc=3", "nearest valid: tuning.early_stopping.patience"),
        ("tuning.steps=abc", "tuning.steps: Value 'abc' of type 'str' could not be converted to Integer"),
        ("tuning.steps=1.5", "tuning.steps: Value '1.5' of type 'float' could not be converted to Integer"),
        ("tuning.steps=null", "tuning.steps"),
        ("tuning.steps=0", "tuning.steps=0 is not allowed; allowed: ≥ 1"),
        ("tuning.schedule=slow", "tuning.schedule: Invalid value 'slow', expected one of [constant, linear, cosine]"),
        ("tuning.early_stopping=null", "tuning.early_stopping"),
        ("model.name_or_path=???", "missing: model.name_or_path"),
        ("method=sff", "Could not find 'method/sff'"),
        ("method.type=dsss", "method.type=dsss is not allowed; allowed: dss, "),
        ("method.type=os.system", "method.type=os.system is not allowed; allowed: "),
        ("method.type=base", "method.type=base is not allowed; allowed: "),
        ("method.type=trainers", "method.type=trainers is not allowed; allowed: "),
        ("method.type=null", "method.type=None is not allowed; allowed: "),
        ("method.type=dss", "missing: method.alpha, a key of DSS; a component is best chosen by its config group"),
        ("+tuning.type=sft", "unknown key: tuning.type"),
        ("sweep.space.method.type=[dss]", "sweep.space.method.type: missing: method.alpha"),
        ("name=../../x", "name='../../x' is not allowed"),
        (
            "sweep.space.tuning.stps=[1]",
            "unknown key: sweep.space.tuning.stps; nearest valid: sweep.space.tuning.steps",
        ),
        (
            "sweep.space.tuning.learning_rate_multiplier={low: 1, high: 2}",
            "sweep.space.tuning.learning_rate_multiplier: low is no part of a range: {min: 0.1, max: 10, distribution",
        ),
        ("sweep.space.tuning.adapter_size=[a]", "sweep.space.tuning.adapter_size: tuning.adapter_size: Value 'a'"),
        (
            "sweep.first=[{}, {tuning.adapter_sze: 8}]",
            "sweep.first[1]: unknown key: tuning.adapter_sze; nearest valid: tuning.adapter_size",
        ),
        ("sweep.first=[{tuning: {adapter_size: a}}]", "sweep.first[0]: tuning.adapter_size: Value 'a'"),
        (
            "sweep.space.seed={choices: [1], when: {tuning.adapter_sze: 8}}",
            "unknown key: sweep.space.seed.when.tuning.adapter_sze; nearest valid: "
            "sweep.space.seed.when.tuning.adapter_size",
        ),
        ("sweep.space.tuning.steps=[0]", "sweep.space.tuning.steps: tuning.steps=0 is not allowed"),
        ("serve.host=0.0.0.0", "serve.api_key_env"),
        ("scaling.trainr.use_liger_kernel=true", "unknown key: scaling.trainr; nearest valid: scaling.trainer"),
        ("scaling.trainer=null", "scaling.trainer"),
        ("scaling.trainer=true", "scaling.trainer"),
        (
            "model.from_pretrained.device_map=auto",
            "device_map=auto is not allowed; set scaling.use_gpu",
        ),
        ("scaling.gpus_per_worker=2", "scaling.gpus_per_worker=2.0 is not allowed; allowed: > 0 and ≤ 1"),
        ("scaling.wait_seconds=-1", "scaling.wait_seconds=-1.0 is not allowed; allowed: ≥ 0"),
    ],
)
def test_refused_with_full_key_and_remedy(override, message):
    assert message in refused(override)


def test_any_key_can_join_the_space_without_a_plus():
    job = load("sweep", [*DEMO, "sweep.space.adapter.dropout=[0.0,0.1]", "sweep.space.tuning.steps=null"])
    assert list(job.sweep.axes()) == ["tuning.learning_rate_multiplier", "tuning.adapter_size", "adapter.dropout"]


CONDITION = "sweep.space.adapter.dropout={choices: [0.0, 0.1], when: {tuning.adapter_size: [8, 16]}}"
FIRST = "sweep.first=[{tuning.adapter_size: 8, tuning.learning_rate_multiplier: 1.0}, {tuning: {adapter_size: 4}}]"


def test_conditions_and_first_points_are_written_on_the_command_line():
    sweep = load("sweep", [*DEMO, CONDITION, FIRST]).sweep
    assert sweep.axes()["adapter.dropout"] == Axis(choices=(0.0, 0.1), when={"tuning.adapter_size": (8, 16)})
    assert sweep.first == [
        {"tuning.adapter_size": 8, "tuning.learning_rate_multiplier": 1.0},
        {"tuning": {"adapter_size": 4}},
    ]


SIZE, RATE, STEPS = "tuning.adapter_size", "tuning.learning_rate_multiplier", "tuning.steps"


@pytest.mark.parametrize(
    ("overrides", "axes"),
    [
        (["tuning.steps=10"], {SIZE, RATE}),
        (["tuning.steps=10", "tuning.adapter_size=8"], {RATE}),
        (["tuning.steps=10", "sweep.space.tuning.steps=[5,10]"], {SIZE, RATE, STEPS}),
        (["sweep.space={tuning: {steps: [5]}}", "tuning.steps=10", "tuning.adapter_size=8"], {RATE, STEPS}),
        (["tuning.steps=10", "sweep.space.tuning=null", "sweep.space.seed=[1,2]"], {"seed"}),
        (["tuning.steps=10", "sweep.space.tuning.steps=null"], {SIZE, RATE}),
        (["tuning.batch_size=4", "seed=1"], {SIZE, RATE, STEPS}),
    ],
)
def test_a_value_that_is_given_takes_its_key_out_of_the_default_space(overrides, axes):
    assert load("sweep", [*DEMO, *overrides]).sweep.axes().keys() == axes


def test_a_key_that_is_taken_out_is_named_on_the_terminal():
    done = run("jobs/sweep.py", *DEMO, "tuning.steps=10", "--cfg", "job")
    assert "tuning.steps=10 is given, so it isn't swept; sweep.space.tuning.steps=[…] would sweep it" in done.stderr
    assert OmegaConf.create(done.stdout).sweep.space.tuning.steps is None


def test_arguments_of_libraries_need_no_plus():
    job = load("train", [*DEMO, "scaling.trainer.use_liger_kernel=true", "+scaling.trainer.optim=adafactor"])
    assert job.scaling.trainer == {"use_liger_kernel": True, "optim": "adafactor"}
    four_bit = "model.from_pretrained.quantization_config={load_in_4bit: true, bnb_4bit_quant_type: nf4}"
    expected = {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
    assert load("train", [*DEMO, four_bit]).model.from_pretrained == expected
    teacher = ["teacher=local", "teacher.model.name_or_path=org/name", "data.train=x.jsonl"]
    assert load("annotate", [*teacher, f"teacher.{four_bit}"]).teacher.model.from_pretrained == expected
    assert load("train", DEMO).scaling.trainer == load("train", DEMO).model.from_pretrained == {}


def test_a_range_takes_the_place_of_a_list_of_choices():
    space = "sweep.space.tuning.learning_rate_multiplier={min: 0.1, max: 10, distribution: log_uniform}"
    axis = load("sweep", [*DEMO, space]).sweep.axes()["tuning.learning_rate_multiplier"]
    assert (axis.choices, axis.low, axis.high) == ((), 0.1, 10)


def test_a_trials_values_make_its_job():
    job = load("sweep", DEMO).with_values({"tuning.steps": 5, "tuning.schedule": "linear", "adapter.alpha": 2.0})
    assert (job.tuning.steps, job.tuning.schedule, job.adapter.alpha) == (5, Schedule.linear, 2.0)
    with pytest.raises(InputError, match=r"tuning\.x is not a key"):
        job.with_values({"tuning.x": 1})


def test_a_command_that_runs_can_load_other_jobs():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert load("check", ["model=demo", "data=demo_chat"]).data.eval_size == 256
        with pytest.raises(InputError, match="no_such_key"):
            load("check", ["model=demo", "data=demo_chat", "no_such_key=1"])
        assert GlobalHydra.instance().is_initialized(), "of the command itself"
    assert not GlobalHydra.instance().is_initialized()


def test_described_and_restored_is_the_same():
    job = load("sweep", [*DEMO, "tracking=tensorboard"])
    assert build(Method, describe(job.method, Method)) == job.method
    assert build(SweepJob, describe(job)) == job


def test_relative_paths_become_absolute_on_the_driver(tmp_path, monkeypatch):
    (tmp_path / "mine.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    job = load("train", ["model=demo", "data.train=mine.jsonl", "home=out"])
    assert job.data.train == str(tmp_path / "mine.jsonl") and job.home == str(tmp_path / "out")
    assert load("train", ["model=demo", "data.train=mine.jsonl", "home=s3://bucket/x"]).home == "s3://bucket/x"
    assert load("train", ["model=qwen3-4b", "data.train=mine.jsonl"]).model.name_or_path == "Qwen/Qwen3-4B"


def test_one_learning_rate_from_base_adapter_and_multiplier():
    job = load("train", [*DEMO, "tuning.learning_rate_multiplier=2", "model.learning_rate=1e-3"])
    assert job.trial_config().learning_rate == pytest.approx(2e-3)
    assert load(
        "train", [*DEMO, "adapter=full", "model.learning_rate=1e-3"]
    ).trial_config().learning_rate == pytest.approx(1e-4)
    by_size = load("train", [*DEMO, "model.learning_rate=null"]).trial_config().learning_rate
    assert by_size == pytest.approx(5e-4 * (2000 / 128) ** 0.781)


def run(job, *arguments, cwd=ROOT):
    command = [sys.executable, ROOT / job, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_a_job_leaves_nothing_in_the_folder_it_is_called_from(tmp_path):
    (called_from := tmp_path / "called_from").mkdir()
    assert run("jobs/check.py", *DEMO, f"home={tmp_path}/home", cwd=called_from).returncode == 0
    assert list(called_from.iterdir()) == []


def test_a_job_refuses_in_one_message_with_status_2():
    done = run("jobs/train.py", *DEMO, "tuning.stpes=3")
    assert done.returncode == 2
    assert done.stderr.strip().startswith("error: unknown key: tuning.stpes; nearest valid: tuning.steps")
    assert "Traceback" not in done.stderr
    done = run("jobs/train.py", *DEMO, "tuning.steps=0")
    assert (done.returncode, done.stderr.strip()) == (2, "error: tuning.steps=0 is not allowed; allowed: ≥ 1")


def test_help_explains_every_key():
    done = run("jobs/sweep.py", *DEMO, "--help")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    for key in all_keys(plain(compose("sweep", DEMO))):
        places = [i for i, line in enumerate(lines) if re.match(rf"  {re.escape(key)} = ", line)]
        if places and not key.startswith("sweep.space."):
            assert lines[places[0] + 1].startswith("      "), f"{key} has no meaning in --help"
    assert "  sweep/search: grid optuna random" in lines
    assert run("jobs/sweep.py", *DEMO, "--cfg", "job").returncode == 0
