"""The stages that come before a job's own training, and that training: each makes a version and can be gone on with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from raytune_llm import summary
from raytune_llm.full_disk import full_disk_explained
from raytune_llm.job import Outcome, TrainJob, Trial
from raytune_llm.starting import Started, start

if TYPE_CHECKING:
    from raytune_llm.conclusion import Conclusion

J = TypeVar("J", bound=TrainJob)


def ready(job: J, check: Callable[[], None] = lambda: None) -> Started[J]:
    """A job that may train: checked by starting.start, its earlier stages done, and what frozen models say of its
    examples computed. Raises InputError."""
    from raytune_llm.precomputation import precompute_on_cluster

    started = start(job, check)
    if job.method.needs.sampling:
        started = with_reward(started)
    examples = precompute_on_cluster(started.job, started.prepared.examples, use_gpu=started.use_gpu)
    return replace(started, prepared=replace(started.prepared, examples=examples))


def with_reward(started: Started[J]) -> Started[J]:
    """The job with a reward model: the one it names, or one trained here first, which all its trials share. A run
    that is gone on with takes the one it made before."""
    from raytune_llm.stages import finished, inherited, reward_job

    job = inherited(started.job)
    method: Any = job.method
    if not method.trains_reward:
        return replace(started, job=job)
    stage = reward_job(job)
    version = finished(stage)
    if version is None:
        print(f"\nfirst stage: a reward model from the preferences, {stage.name}", flush=True)
        outcome, conclusion = train_version(ready(stage))
        print(summary.of_training(stage, outcome, conclusion), flush=True)
        version = conclusion.version
        print("\nsecond stage: the policy", flush=True)
    return replace(started, job=job.with_values({"method.reward_adapter": version.reference}))


def train_version(started: Started[J]) -> tuple[Outcome, Conclusion]:
    """Train a started job's one trial and publish what came of it."""
    job = started.job
    with full_disk_explained(job):
        import ray

        from raytune_llm.conclusion import conclude
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
        return outcome, conclude(job, started.prepared, outcome, parent=parent, use_gpu=started.use_gpu)
