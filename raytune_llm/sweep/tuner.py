"""Ray Tune runs the sweep: its searchers propose, its schedulers stop, its storage lets a lost driver go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ray import tune
from ray.tune.logger import JsonLoggerCallback

from raytune_llm.evaluation.terms import lower_is_better
from raytune_llm.jobs.schema import SweepJob
from raytune_llm.stores.disk_full import raise_if_disk_full
from raytune_llm.sweep.backends.base import Runner
from raytune_llm.sweep.progress import LiveTable
from raytune_llm.sweep.schedulers.batched import BatchedScheduler
from raytune_llm.sweep.schedulers.replay import ReplayingScheduler, checkpointed
from raytune_llm.sweep.schedulers.wrapper import SchedulerWrapper
from raytune_llm.sweep.space import STEPS, Plan
from raytune_llm.training.config import Outcome


def run(job: SweepJob, plan: Plan, examples: Any, use_gpu: bool, interactive: bool) -> list[Outcome]:
    """Run all trials to their ends, or go on with those of an interrupted run; one outcome a trial. Raises InputError
    when a disk was full."""
    runner = job.sweep.backend.start(job, plan, examples, use_gpu)
    try:
        path = f"{job.run_dir}/trials"
        if tune.Tuner.can_restore(path):
            print("going on with the interrupted sweep", flush=True)
            tuner = tune.Tuner.restore(path, runner.trainable, resume_unfinished=True, resume_errored=True)
        else:
            tuner = new_tuner(job, plan, runner, interactive)
        with interrupts_given_back():
            results = list(tuner.fit())
        for result in results:
            if result.error is not None:
                raise_if_disk_full(result.error, job)
        return [runner.outcome(result) for result in results]
    finally:
        runner.close()


@contextmanager
def interrupts_given_back() -> Iterator[None]:
    """Ray Tune takes the process's next Ctrl-C, and keeps it when the sweep has ended: an endpoint that comes after it
    would not stop."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in kept.items():
                signal.signal(number, handler)


def new_tuner(job: SweepJob, plan: Plan, runner: Runner, interactive: bool) -> tune.Tuner:
    """Ray Tune, set up as the job says."""
    metric = job.method.metric
    mode = "min" if lower_is_better(metric) else "max"
    search, steps, directory = job.sweep.search, longest(job, plan), f"{job.run_dir}/trials"
    scheduler: SchedulerWrapper = ReplayingScheduler(
        job.sweep.scheduler.build(metric, mode, steps),
        partial(checkpointed, directory),
        finished_too=job.sweep.scheduler.replays,
    )
    if runner.trains_on and job.sweep.scheduler.order is not None:
        scheduler = BatchedScheduler(scheduler, job.sweep.scheduler.order, lower_is_better=lower_is_better(metric))
    return tune.Tuner(
        runner.trainable,
        param_space=search.param_space(plan),
        tune_config=tune.TuneConfig(
            num_samples=search.num_samples(),
            search_alg=search.searcher(metric, mode, job.seed),
            scheduler=scheduler,
            max_concurrent_trials=runner.max_concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=job.run_dir,
            failure_config=tune.FailureConfig(max_failures=job.scaling.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            callbacks=[LiveTable(metric, search.num_trials(plan), steps, interactive), JsonLoggerCallback()],
            verbose=0,
        ),
    )


def longest(job: SweepJob, plan: Plan) -> int:
    """The most steps any trial of the plan may run."""
    if plan.milestones:
        return plan.milestones[-1]
    if STEPS not in plan.axes:
        return job.tuning.steps
    axis = plan.axes[STEPS]
    return int(max(axis.choices) if axis.choices else axis.high)
