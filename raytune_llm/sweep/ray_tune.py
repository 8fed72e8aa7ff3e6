"""Ray Tune runs trials: its schedulers stop them, its controller starts, watches and restarts them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ray import tune

from raytune_llm.stores.storage import open_storage
from raytune_llm.sweep.backends.base import Runner
from raytune_llm.sweep.plan import Plan
from raytune_llm.sweep.schedulers.batched import BatchedScheduler
from raytune_llm.sweep.schedulers.replay import ReplayingScheduler, checkpointed
from raytune_llm.sweep.schedulers.wrapper import SchedulerWrapper
from raytune_llm.sweep.space import Sweep
from raytune_llm.sweep.steering import SteeredScheduler, Steering
from raytune_llm.training.config import TrialConfig
from raytune_llm.training.interrupts import interruptible

FOLDER = "tune"
"""Of a run that Ray Tune writes to: errors of trials, and nothing that is read again."""


def fit(
    runner: Runner,
    scheduler: SchedulerWrapper,
    steering: Steering,
    config: TrialConfig,
    callbacks: Sequence[tune.Callback],
) -> dict[str, Exception]:
    """Run what the queue gives until it is finished; the errors of trials that failed, by their ids."""
    storage = open_storage(config.run_dir)
    if storage.files(FOLDER):
        storage.remove(FOLDER)
    tuner = tune.Tuner(
        runner.trainable,
        tune_config=tune.TuneConfig(
            num_samples=-1,
            search_alg=steering.queue,
            scheduler=SteeredScheduler(scheduler, steering),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=FOLDER,
            storage_path=config.run_dir,
            failure_config=tune.FailureConfig(max_failures=config.scaling.max_failures),
            callbacks=list(callbacks),
            verbose=0,
        ),
    )
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # misses files of a logger
    with interruptible():
        results = list(tuner.fit())
    return {Path(result.path).name: result.error for result in results if result.error is not None}


def build_scheduler(sweep: Sweep, config: TrialConfig, plan: Plan, *, overlaps_decisions: bool) -> SchedulerWrapper:
    """Ray Tune's scheduler, which a restart doesn't confuse and, where trials continue meanwhile, decides on reports in
    batches."""
    objective, settings = config.objective, sweep.scheduler
    scheduler: SchedulerWrapper = ReplayingScheduler(
        settings.build(objective.metric, objective.mode, plan.most_steps()),
        partial(checkpointed, f"{config.run_dir}/trials"),
        finished_too=settings.replays,
    )
    if overlaps_decisions and settings.order is not None:
        scheduler = BatchedScheduler(scheduler, settings.order, lower_is_better=objective.lower_is_better)
    return scheduler
