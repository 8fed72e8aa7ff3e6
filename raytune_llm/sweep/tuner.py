"""Ray Tune runs the sweep: its searchers propose, its schedulers stop, its storage lets a lost driver resume."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ray import tune
from ray.tune.logger import JsonLoggerCallback

from raytune_llm.stores.disk_full import raise_if_disk_full
from raytune_llm.sweep.backends.base import Runner, RunnerInputs
from raytune_llm.sweep.plan import Plan
from raytune_llm.sweep.progress import LiveTable
from raytune_llm.sweep.schedulers.batched import BatchedScheduler
from raytune_llm.sweep.schedulers.replay import ReplayingScheduler, checkpointed
from raytune_llm.sweep.schedulers.wrapper import SchedulerWrapper
from raytune_llm.sweep.space import Sweep
from raytune_llm.training.config import Outcome, TrialConfig


def run(
    sweep: Sweep, config: TrialConfig, plan: Plan, examples: Any, use_gpu: bool, interactive: bool
) -> list[Outcome]:
    """Run all trials to their ends, or resume those of an interrupted run; one outcome a trial. Raises InputError when
    a disk was full."""
    runner = sweep.backend.start(
        RunnerInputs(
            config=config,
            plan=plan,
            examples=examples,
            use_gpu=use_gpu,
            num_trials=sweep.search.num_trials(plan),
            max_concurrent=sweep.max_concurrent,
            compares_reports=sweep.scheduler.order is not None,
        )
    )
    try:
        path = f"{config.run_dir}/trials"
        if tune.Tuner.can_restore(path):
            print("resuming the interrupted sweep", flush=True)
            tuner = tune.Tuner.restore(path, runner.trainable, resume_unfinished=True, resume_errored=True)
        else:
            tuner = new_tuner(sweep, config, plan, runner, interactive)
        with restored_signal_handlers():
            results = list(tuner.fit())
        for result in results:
            if result.error is not None:
                raise_if_disk_full(result.error, config.home, config.run)
        return [runner.outcome(result) for result in results]
    finally:
        runner.close()


@contextmanager
def restored_signal_handlers() -> Iterator[None]:
    """Ray Tune handles the process's Ctrl-C, and keeps doing so when the sweep has ended: an endpoint that is started
    after it would not stop."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in kept.items():
                signal.signal(number, handler)


def new_tuner(sweep: Sweep, config: TrialConfig, plan: Plan, runner: Runner, interactive: bool) -> tune.Tuner:
    """Ray Tune, set up as the sweep's settings say."""
    objective, search, steps = config.objective, sweep.search, plan.most_steps()
    return tune.Tuner(
        runner.trainable,
        param_space=search.param_space(plan),
        tune_config=tune.TuneConfig(
            num_samples=search.num_samples(),
            search_alg=search.searcher(objective.metric, objective.mode, config.seed),
            scheduler=build_scheduler(sweep, config, plan, overlaps_decisions=runner.overlaps_decisions),
            max_concurrent_trials=runner.max_concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=config.run_dir,
            failure_config=tune.FailureConfig(max_failures=config.scaling.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            callbacks=[LiveTable(objective, search.num_trials(plan), steps, interactive), JsonLoggerCallback()],
            verbose=0,
        ),
    )


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
