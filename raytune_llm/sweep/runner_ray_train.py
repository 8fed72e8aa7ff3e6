"""Trials that each have their own copy of the base.

A trial of one worker runs inside its Tune trial, whose process stays warm for the next one; a trial of several
workers drives a Ray Train job of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from ray import tune

from raytune_llm.jobs.schema import SweepJob
from raytune_llm.sweep.space import Plan
from raytune_llm.training.config import Outcome, Trial
from raytune_llm.training.ray_train import TrialSetup, outcome_of, run_trial, trainer_for


class RayTrainRunner:
    """Runs a sweep, trial by trial."""

    trains_on = False

    def __init__(self, job: SweepJob, plan: Plan, examples: Any, use_gpu: bool) -> None:
        self.job, self.plan, self.examples, self.use_gpu = job, plan, examples, use_gpu
        parameters = {"job": job, "plan": plan, "examples": [examples], "use_gpu": use_gpu}
        self.trainable = tune.with_resources(tune.with_parameters(run_one, **parameters), resources(job, use_gpu))
        self.max_concurrent = concurrency(job, use_gpu)

    def outcome(self, result: Any) -> Outcome:
        setup = setup_of(self.job, self.plan, self.examples, self.use_gpu, result.config, Path(result.path).name)
        if result.checkpoint is None and result.metrics and result.metrics.get("checkpoint_path"):
            result.checkpoint = tune.Checkpoint(result.metrics["checkpoint_path"])
        return outcome_of(setup, result)

    def close(self) -> None:
        """Tune has ended its trials' processes already."""


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
    return TrialSetup(
        job=job.with_values(plan.values(config)),
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
