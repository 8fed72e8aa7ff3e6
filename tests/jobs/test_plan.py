"""plan=true: a table, findings and the next command; nothing trained, nothing left behind. Predictions of jobs that
run, kept in their cards."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from worlds import write_base, write_records

from raytune_llm.errors import InputError
from raytune_llm.jobs import commands, plan
from raytune_llm.jobs.config import load
from raytune_llm.jobs.run_result import read_result
from raytune_llm.stores.registry import Registry


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return write_base(folder / "base", "llama"), *write_records(folder)


def job_of(world, root, home, *overrides):
    base, train, evaluation = world
    return load(
        root,
        [
            *(f"model.name_or_path={base}", f"data.train={train}", f"data.eval={evaluation}", f"home={home}"),
            *("run=r", "name=t", "tuning.batch_size=4", "tuning.steps=4", "tuning.eval_every=2"),
            *("tuning.adapter_size=4", "model.learning_rate=1e-2", "evaluation.max_new_tokens=4"),
            *overrides,
        ],
    )


SPACE = ("sweep.space.tuning.steps=[2,4]", "sweep.space.tuning.adapter_size=[2,4]", "sweep/scheduler=none")


@pytest.mark.parametrize("backend", ["packed", "ray_train"])
def test_a_sweep_is_planned_and_leaves_nothing(world, ray_session, tmp_path, capsys, backend):
    home = tmp_path / "planned"
    job = job_of(world, "sweep", home, "plan=true", *SPACE, f"sweep/backend={backend}", "scaling.usd_per_hour=2")
    assert commands.sweep(job) == 0
    printed = capsys.readouterr().out
    for word in ("trials ", "steps ", "records ", "where ", "memory ", "step ", "time ", "cost ", "disk ", "next "):
        assert f"\n{word}" in printed, word
    assert "nothing was trained" in printed
    assert "(measured)" in printed
    assert "US dollars" in printed
    assert not home.exists()


@pytest.mark.slow  # a training that is predicted, and another that learns from it
def test_a_training_predicts_and_the_next_one_learns(world, ray_session, tmp_path, capsys):
    home = tmp_path / "home"
    assert commands.train(job_of(world, "train", home)) == 0
    assert "\npredicted " in capsys.readouterr().out
    kept = Registry(f"{home}/registry").resolve("t").card.forecast
    assert kept["source"] == "guessed"
    assert kept["actual"]["trial_steps"] == kept["predicted"]["trial_steps"] == 4
    assert read_result(f"{home}/runs/t/r")["forecast"].keys() == kept.keys()
    assert commands.train(replace(job_of(world, "train", home), run="again")) == 0
    assert "corrected by 1 before" in capsys.readouterr().out


@pytest.mark.slow  # a sweep from its rehearsal to its end
def test_a_sweep_rehearses_predicts_and_keeps_both(world, ray_session, tmp_path, capsys):
    home = tmp_path / "home"
    assert commands.sweep(job_of(world, "sweep", home, *SPACE, "sweep/backend=packed", "serve.deploy=false")) == 0
    printed = capsys.readouterr().out
    assert "expected: " in printed
    assert "\npredicted " in printed
    kept = Registry(f"{home}/registry").resolve("t").card.forecast
    assert kept["source"] == "measured"
    assert kept["actual"]["trial_steps"] == 24, "six trials of four steps"
    assert kept["actual"]["memory_bytes"] == pytest.approx(kept["predicted"]["memory_bytes"], rel=0.2)


def test_a_teacher_is_not_asked_for_a_plan(world, tmp_path):
    job = job_of(world, "train", tmp_path / "home", "plan=true", "teacher=openai", "teacher.model=m")
    with pytest.raises(InputError, match="plan=True is not allowed"):
        commands.train(job)


@pytest.mark.parametrize(
    ("given", "command"),
    [
        (["python", "jobs/sweep.py", "plan=true", "name=a b"], "python jobs/sweep.py 'name=a b'"),
        (["python", "/bin/raytune-llm", "demo", "plan=true"], "raytune-llm demo"),
    ],
)
def test_the_next_command_is_this_one_without_plan(monkeypatch, given, command):
    monkeypatch.setattr(sys, "orig_argv", given)
    monkeypatch.setattr(sys, "argv", [given[1], *given[2:]])
    assert plan.next_command() == command


def test_nothing_of_a_plan_is_a_folder_of_the_run(world, tmp_path):
    assert not Path(job_of(world, "train", tmp_path / "home", "plan=true").run_dir).exists()
