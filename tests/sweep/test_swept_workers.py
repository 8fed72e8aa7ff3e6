"""A sweep over batch sizes and numbers of workers: the same results packed, alone, and on two workers."""

import dataclasses

import pytest
import ray
from worlds import write_base, write_records

from raytune_llm.jobs.config import load
from raytune_llm.jobs.prepare import check_sweep, prepare
from raytune_llm.sweep import tuner
from raytune_llm.sweep.leaderboard import leaderboard
from raytune_llm.sweep.phases import Phase
from raytune_llm.sweep.plan import BATCH_SIZE, STEPS, make_plan
from raytune_llm.sweep.resources import NUM_WORKERS
from raytune_llm.sweep.tables import leaderboard_csv, leaderboard_table

pytestmark = [
    pytest.mark.slow,  # a minute and more: Ray Train jobs inside trials
    pytest.mark.usefixtures("ray_session"),
]


def job_of(folder, *overrides):
    train, evaluation = write_records(folder / "data")
    return load(
        "sweep",
        [
            *(f"model.name_or_path={write_base(folder / 'base', 'llama')}", f"data.train={train}"),
            *(f"data.eval={evaluation}", f"home={folder}/home", "tuning.eval_every=2", "tuning.warmup_steps=0"),
            *("tuning.adapter_size=4", "tuning.learning_rate_multiplier=1", "sweep/scheduler=none"),
            *("sweep.space.tuning.batch_size=[2,4]", "sweep.space.tuning.steps=[2,4]", *overrides),
            *("tuning.early_stopping.patience=null", "scaling.use_gpu=false"),
        ],
    )


def swept(job):
    """(outcomes, plan, objective)."""
    planned = make_plan(job.trial_config(), job.sweep.axes(), job.sweep.first)
    check_sweep(job, planned)
    prepared = prepare(job)
    config = job.trial_config(prepared.better)
    phase = Phase(config=config, examples=ray.put(prepared.examples))
    return tuner.run(job.sweep, [phase], use_gpu=False, interactive=False).outcomes, planned, config.objective


def curve(outcome):
    return {report.step: report.metrics["eval/loss"] for report in outcome.reports}


def test_batch_sizes_and_workers_of_each_trial_are_its_own(tmp_path):
    """Two workers take both CPUs of the session, so that such trials run one after another."""
    job = job_of(tmp_path, "run=packed", "sweep/backend=packed")
    outcomes, plan, objective = swept(job)
    packed = {outcome.trial.values[BATCH_SIZE]: curve(outcome) for outcome in outcomes}
    assert packed.keys() == {2, 4} and packed[2] != packed[4]
    rows = leaderboard(outcomes, plan, objective)
    assert {(row.values[BATCH_SIZE], row.values[STEPS]) for row in rows} == {(2, 2), (2, 4), (4, 2), (4, 4)}
    assert "batch_size" in leaderboard_table(rows, "eval/loss", 10) and BATCH_SIZE in leaderboard_csv(rows)

    own = dataclasses.replace(job, run="alone", sweep=alone(job))
    for outcome in swept(own)[0]:
        assert outcome.ended == "complete"
        assert curve(outcome) == pytest.approx(packed[outcome.trial.values[BATCH_SIZE]], rel=1e-4)
        assert outcome.trial.values[NUM_WORKERS] in (1, 2)


def alone(job):
    """The sweep, each trial on a base of its own, on one worker and on two."""
    other = load("sweep", ["model=demo", "data=demo_sarcasm", "sweep/backend=ray_train"]).sweep
    space = {**job.sweep.space, "scaling": {"num_workers": [1, 2]}}
    return dataclasses.replace(job.sweep, backend=other.backend, space=space)
