"""The stages that come before a job's own training, and that training: each makes a version and can be gone on with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from raytune_llm.errors import input_errors_of_workers
from raytune_llm.jobs import summary
from raytune_llm.jobs.schema import TrainJob
from raytune_llm.jobs.setup import Started, start
from raytune_llm.stores.disk_full import explain_disk_full
from raytune_llm.training.config import Outcome, Trial

if TYPE_CHECKING:
    from raytune_llm.jobs.publish import PublishResult

J = TypeVar("J", bound=TrainJob)


def prepare_job(job: J, check: Callable[[], None] = lambda: None) -> Started[J]:
    """A job that may train: checked by starting.start, its earlier stages done, and what frozen models say of its
    examples computed. Raises InputError."""
    started = start(job, check)
    if job.method.needs.stages or job.method.needs.init_adapter:
        started = after_stages(started)
    from raytune_llm.jobs.precompute import precompute_on_cluster

    examples = precompute_on_cluster(started.job, started.prepared.examples, use_gpu=started.use_gpu)
    return replace(started, prepared=replace(started.prepared, examples=examples))


def after_stages(started: Started[J]) -> Started[J]:
    """The job with what its method has trained first, once for all its trials. A run that is gone on with takes what
    it made before."""
    from raytune_llm.jobs.stage_jobs import finished, inherited, stage_job

    job, made = inherited(started.job), []
    stages = job.method.needs.stages
    for place, stage in enumerate(stages, start=1):
        own = stage_job(job, stage)
        version = finished(own)
        print(f"\nstage {place} of {len(stages) + 1}: {stage.meaning}, {own.name}", flush=True)
        if version is None:
            outcome, conclusion = train_version(prepare_job(own))
            print(summary.of_stage(own, outcome, conclusion), flush=True)
            version = conclusion.version
        else:
            print(f"made already: {version.reference}", flush=True)
        job = inherited(job.with_values({stage.key: version.reference}))
        made.append(version)
    if stages:
        print(f"\nstage {len(stages) + 1} of {len(stages) + 1}: the policy, {job.name}", flush=True)
    return replace(started, job=job, earlier=tuple(made))


def train_version(started: Started[J]) -> tuple[Outcome, PublishResult]:
    """Train a started job's one trial and publish what came of it."""
    job = started.job
    with explain_disk_full(job), input_errors_of_workers():
        import ray

        from raytune_llm.jobs.publish import publish_trial
        from raytune_llm.training.ray_train import TrialSetup
        from raytune_llm.training.ray_train import train as run_trial

        setup = TrialSetup(
            job=job,
            trial=Trial(id="train", values={}),
            examples=ray.put(started.prepared.examples),
            milestones=(job.tuning.steps,),
            use_gpu=started.use_gpu,
            group=None,
            interactive=started.interactive,
        )
        outcome = run_trial(setup)
        parent = job.method.needs.init_adapter
        return outcome, publish_trial(job, started.prepared, outcome, parent=parent, use_gpu=started.use_gpu)
