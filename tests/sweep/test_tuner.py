"""Sweeps on real Ray whose trials each have their own base: searches, schedulers, and processes that die."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from safetensors.torch import load_file
from torch.testing import assert_close
from traps import Trap
from worlds import write_base, write_records

from raytune_llm.jobs import commands
from raytune_llm.jobs.config import load
from raytune_llm.jobs.prepare import check_sweep, prepare
from raytune_llm.stores.registry import Registry
from raytune_llm.sweep import tuner
from raytune_llm.sweep.phases import Phase
from raytune_llm.sweep.plan import make_plan

pytestmark = pytest.mark.slow  # minutes of real clusters, killed processes and submitted jobs

RATE = "tuning.learning_rate_multiplier"
SIZE = "tuning.adapter_size"


def job_of(world, home, *overrides, **trackers):
    """A sweep of two trials on a tiny base."""
    job = load(
        "sweep",
        [
            f"model.name_or_path={world}/base",
            f"data.train={world}/data/train.jsonl",
            f"data.eval={world}/data/eval.jsonl",
            f"home={home}",
            "name=swept",
            "run=one",
            "tuning.batch_size=4",
            "tuning.eval_every=2",
            "tuning.early_stopping.patience=null",
            "model.learning_rate=1e-2",
            "evaluation.max_new_tokens=4",
            "sweep/backend=ray_train",
            "sweep/scheduler=none",
            "sweep.space.tuning.steps=[4,8]",
            f"sweep.space.{SIZE}=[2,4]",
            f"sweep.space.{RATE}=[1.0]",
            *overrides,
        ],
    )
    return dataclasses.replace(job, tracking={**job.tracking, **trackers})


def swept(job):
    """The sweep's outcomes, by the size of their adapters where that is what differs."""
    planned = make_plan(job.trial_config(), job.sweep.axes())
    check_sweep(job, planned)
    prepared = prepare(job)
    phase = Phase(config=job.trial_config(prepared.better), examples=ray.put(prepared.examples))
    return tuner.run(job.sweep, [phase], use_gpu=False, interactive=False).outcomes


def losses(outcome):
    return {report.step: report.metrics["eval/loss"] for report in outcome.reports}


def by_size(outcomes):
    return {outcome.trial.values[SIZE]: outcome for outcome in outcomes}


def lines_of(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def assert_same(outcomes, undisturbed, rel):
    """Each trial ended with all reports, the same losses, and as the best weights those of the best step."""
    assert set(by_size(outcomes)) == set(by_size(undisturbed))
    for size, outcome in by_size(outcomes).items():
        expected = by_size(undisturbed)[size]
        assert outcome.ended == expected.ended
        assert losses(outcome) == pytest.approx(losses(expected), rel=rel)
        folder = Path(outcome.checkpoint)
        logged = [line["step"] for line in lines_of(folder.parent) if "eval/loss" in line]
        assert logged == list(losses(expected)), "a report is lost or stands there twice"
        weights = [load_file(Path(o.checkpoint) / "best" / "adapter_model.safetensors") for o in (outcome, expected)]
        assert_close(*weights, rtol=0, atol=100 * rel)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny base with its train and eval files."""
    folder = tmp_path_factory.mktemp("world")
    write_base(folder / "base", "llama")
    write_records(folder / "data", count=40)
    return folder


@pytest.fixture(scope="module")
def undisturbed(ray_session, world, tmp_path_factory):
    """A grid that nothing happens to, tracked by W&B into files."""
    offline = ["tracking=wandb", "tracking.wandb.mode=offline"]
    return swept(job_of(world, tmp_path_factory.mktemp("home"), *offline))


def test_a_grid_runs_every_point_to_its_end(undisturbed):
    assert set(by_size(undisturbed)) == {2, 4} and {outcome.ended for outcome in undisturbed} == {"complete"}
    for size, outcome in by_size(undisturbed).items():
        folder = Path(outcome.checkpoint)
        assert list(losses(outcome)) == [2, 4, 6, 8]
        assert json.loads((folder / "best" / "adapter_config.json").read_text())["r"] == size
        assert [path.name for path in folder.parent.glob("checkpoint_*")] == [folder.name]


def test_wandb_has_one_run_a_trial_grouped_by_the_sweep(undisturbed):
    folders = [Path(outcome.checkpoint).parent for outcome in undisturbed]
    files = [list(folder.rglob("*.wandb")) for folder in folders]
    assert [len(found) for found in files] == [1, 1] and len({found[0].name for found in files}) == 2
    for folder, (file,) in zip(folders, files, strict=True):
        content = file.read_bytes()
        assert b"swept-one" in content and folder.name.encode() in content


def test_trials_of_two_workers_come_to_the_same(undisturbed, world, tmp_path):
    """Each drives a Ray Train job of its own inside its Tune trial; the same up to the order of fp32 sums, 1e-4."""
    job = job_of(world, tmp_path, "scaling.num_workers=2", "scaling.cpus_per_worker=0.5")
    assert_same(swept(job), undisturbed, rel=1e-4)


def test_a_killed_trial_resumes_from_its_checkpoint(undisturbed, world, tmp_path):
    trap = Trap(str(tmp_path / "sprung"), step=6)
    outcomes = swept(job_of(world, tmp_path, "scaling.max_failures=1", trap=trap))
    assert trap.sprung
    assert_same(outcomes, undisturbed, rel=1e-6)


def test_an_interrupted_sweep_resumes_when_it_is_named(undisturbed, world, tmp_path, capsys):
    """The driver is killed with its whole Ray session while the second trial runs; the same command resumes it."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.run([sys.executable, __file__, str(world), str(tmp_path)], env=environment)
    trials = tmp_path / "runs" / "swept" / "one" / "trials"
    assert killed.returncode == -signal.SIGKILL and (tmp_path / "sprung").exists()
    before = {file.parent.name: lines_of(file.parent) for file in trials.glob("*/metrics.jsonl")}

    job = job_of(world, tmp_path, "sweep.max_concurrent=1")
    conclusion = commands.run_sweep(job)
    assert "resuming the interrupted sweep" in capsys.readouterr().out
    assert [version.reference for version in Registry(job.registry_dir).list()] == ["swept@1"]
    finished = [id for id, lines in before.items() if lines[-1]["step"] == 8]
    assert len(finished) == 1 and lines_of(trials / finished[0]) == before[finished[0]], "a finished trial ran again"
    again = swept(job)
    assert_same(again, undisturbed, rel=1e-6)
    assert conclusion.version.card.metrics["eval/loss"] == pytest.approx(
        min(min(losses(outcome).values()) for outcome in again), rel=1e-5
    )


def test_a_decaying_schedule_makes_every_step_count_a_trial(ray_session, world, tmp_path):
    linear = ["tuning.schedule=linear", "tuning.warmup_steps=0", "tuning.eval_every=4"]
    job = job_of(world, tmp_path, *linear, f"sweep.space.{SIZE}=[2]")
    outcomes = {outcome.trial.values["tuning.steps"]: outcome for outcome in swept(job)}
    assert {steps: list(losses(outcome)) for steps, outcome in outcomes.items()} == {4: [4], 8: [4, 8]}
    assert losses(outcomes[4])[4] != losses(outcomes[8])[4]


@pytest.mark.parametrize(("search", "scheduler"), [("random", "asha"), ("optuna", "median")])
def test_searches_draw_from_ranges(search, scheduler, ray_session, world, tmp_path):
    ranges = [
        f"sweep.space.{SIZE}={{min: 1, max: 8, distribution: int_uniform}}",
        f"sweep.space.{RATE}={{min: 0.1, max: 10, distribution: log_uniform}}",
    ]
    options = [f"sweep/search={search}", f"sweep/scheduler={scheduler}", "sweep.search.trials=3"]
    outcomes = swept(job_of(world, tmp_path, *ranges, *options, "sweep.space.tuning.steps=[2]"))
    points = {(outcome.trial.values[SIZE], outcome.trial.values[RATE]) for outcome in outcomes}
    assert len(outcomes) == len(points) == 3
    for size, rate in points:
        assert isinstance(size, int) and 1 <= size <= 8 and 0.1 <= rate <= 10


@pytest.mark.parametrize(
    "options",
    [
        ["sweep/scheduler=median", "sweep.scheduler.min_trials=1", "sweep.scheduler.grace_steps=2"],
        ["sweep/scheduler=asha", "sweep.scheduler.reduction_factor=2", "sweep.scheduler.grace_steps=2"],
    ],
)
def test_schedulers_stop_what_is_worse(options, ray_session, world, tmp_path):
    """One after the other: the second learns nothing and is stopped before its last step, the first is not."""
    job = job_of(world, tmp_path, *options, "sweep.max_concurrent=1", f"sweep.space.{SIZE}=[4]")
    space = {"tuning": {"steps": [8], "learning_rate_multiplier": [1.0, 1e-6]}}
    job = dataclasses.replace(job, sweep=dataclasses.replace(job.sweep, space=space))
    outcomes = {outcome.trial.values[RATE]: outcome for outcome in swept(job)}
    assert {rate: outcome.ended for rate, outcome in outcomes.items()} == {1.0: "complete", 1e-6: "scheduler"}
    assert max(losses(outcomes[1e-6])) < 8 and math.isfinite(outcomes[1e-6].best.metrics["eval/loss"])


if __name__ == "__main__":
    trap = Trap(f"{sys.argv[2]}/sprung", step=6, pid=os.getpid(), after=1, seconds=8)
    commands.run_sweep(job_of(*sys.argv[1:], "sweep.max_concurrent=1", trap=trap))
