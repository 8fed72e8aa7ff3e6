"""Ray Tune runs the sweep: its searchers propose, its schedulers stop, its storage lets a lost driver go on.

A trial of one worker runs inside its Tune trial, whose process stays warm for the next one; a trial of several
workers drives a Ray Train job of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from ray import tune

from raytune_llm.job import Outcome, SweepJob, Trial
from raytune_llm.method import lower_is_better
from raytune_llm.sweep.live import LiveTable
from raytune_llm.sweep.scheduler import STEP
from raytune_llm.sweep.space import STEPS, Plan
from raytune_llm.training.ray_train import TrialSetup, outcome_of, run_trial, trainer_for


def run(job: SweepJob, plan: Plan, examples: Any, use_gpu: bool, interactive: bool) -> list[Outcome]:
    """Run all trials to their ends, or go on with those of an interrupted run; one outcome a trial."""
    storage = f"{job.run_dir}"
    trainable = tune.with_resources(
        tune.with_parameters(run_one, job=job, plan=plan, examples=[examples], use_gpu=use_gpu), resources(job, use_gpu)
    )
    path = f"{storage}/trials"
    if tune.Tuner.can_restore(path):
        print("going on with the interrupted sweep")
        tuner = tune.Tuner.restore(path, trainable, resume_unfinished=True, resume_errored=True)
    else:
        tuner = new_tuner(job, plan, trainable, storage, interactive)
    grid = tuner.fit()
    return [outcome_of(setup_of(job, plan, examples, use_gpu, r.config, trial_id(r)), with_checkpoint(r)) for r in grid]


def new_tuner(job: SweepJob, plan: Plan, trainable: Any, storage: str, interactive: bool) -> tune.Tuner:
    metric = job.method.metric
    mode = "min" if lower_is_better(metric) else "max"
    search, steps = job.sweep.search, longest(job, plan)
    return tune.Tuner(
        trainable,
        param_space=search.param_space(plan),
        tune_config=tune.TuneConfig(
            num_samples=search.num_samples(),
            search_alg=search.searcher(metric, mode, job.seed),
            scheduler=job.sweep.scheduler.build(metric, mode, steps),
            max_concurrent_trials=concurrency(job, use_gpu=bool(ray.cluster_resources().get("GPU"))),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=storage,
            failure_config=tune.FailureConfig(max_failures=job.scaling.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            callbacks=[LiveTable(metric, search.num_trials(plan), steps, interactive)],
            verbose=0,
        ),
    )


def run_one(config: dict[str, Any], *, job: SweepJob, plan: Plan, examples: list[Any], use_gpu: bool) -> None:
    """A Tune trial."""
    setup = setup_of(job, plan, examples[0], use_gpu, config, tune.get_context().get_trial_id())
    if job.scaling.num_workers > 1:
        from ray.tune.integration.ray_train import TuneReportCallback

        trainer_for(setup, callbacks=[TuneReportCallback()]).fit()
        return

    def report(metrics: dict[str, Any], folder: Path) -> None:
        tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(str(folder)))

    run_trial(setup, 0, 1, report, tune.get_checkpoint())


def setup_of(job: SweepJob, plan: Plan, examples: Any, use_gpu: bool, config: dict[str, Any], id: str) -> TrialSetup:
    """A trial's own job: the point of the space, and the longest milestone where steps are folded."""
    values = dict(config)
    if plan.milestones:
        values[STEPS] = plan.milestones[-1]
    return TrialSetup(
        job=job.with_values(values),
        trial=Trial(id=id, values=dict(config)),
        examples=examples,
        milestones=plan.milestones,
        use_gpu=use_gpu,
        group=f"{job.name}-{job.run}",
        interactive=False,
    )


def resources(job: SweepJob, use_gpu: bool) -> dict[str, float]:
    """What Tune reserves for a trial: its one worker's share, or next to nothing for the driver of several."""
    if job.scaling.num_workers > 1:
        return {"cpu": 0.01}
    return {"cpu": job.scaling.cpus_per_worker, "gpu": 1 if use_gpu else 0}


def concurrency(job: SweepJob, use_gpu: bool) -> int | None:
    """Trials at a time. Several workers a trial need an explicit bound: nested placement would wait for itself."""
    if job.sweep.max_concurrent is not None or job.scaling.num_workers == 1:
        return job.sweep.max_concurrent
    total = ray.cluster_resources()
    fits = total["CPU"] // (job.scaling.num_workers * job.scaling.cpus_per_worker)
    if use_gpu:
        fits = min(fits, total["GPU"] // job.scaling.num_workers)
    return max(1, int(fits))


def longest(job: SweepJob, plan: Plan) -> int:
    """The most steps any trial of the plan may run."""
    if plan.milestones:
        return plan.milestones[-1]
    axis = plan.axes[STEPS]
    return int(max(axis.choices) if axis.choices else axis.high)


def trial_id(result: Any) -> str:
    return Path(result.path).name


def with_checkpoint(result: Any) -> Any:
    """The result with its checkpoint, which a nested Ray Train job names in its metrics."""
    if result.checkpoint is None and result.metrics and result.metrics.get("checkpoint_path"):
        result.checkpoint = tune.Checkpoint(result.metrics["checkpoint_path"])
    return result


assert STEP == "step"
