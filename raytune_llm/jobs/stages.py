"""The stages before a job's own training, and that training: each stage publishes a version and is resumable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from raytune_llm import cluster
from raytune_llm.errors import worker_input_errors
from raytune_llm.jobs import summary
from raytune_llm.jobs.schema import TrainJob
from raytune_llm.jobs.setup import Started, start
from raytune_llm.stores.disk_full import explain_disk_full
from raytune_llm.sweep import status
from raytune_llm.sweep.status import State
from raytune_llm.training.config import Outcome, Trial, TrialSpec

if TYPE_CHECKING:
    from raytune_llm.jobs.prepare import Prepared
    from raytune_llm.jobs.publish import PublishResult

J = TypeVar("J", bound=TrainJob)


def prepare_job(job: J, check: Callable[[], None] = lambda: None, prepared: Prepared | None = None) -> Started[J]:
    """A job that is ready to train: checked (setup.start), its earlier stages done, and the outputs of frozen models
    computed for its records; with plan=true only checked. `prepared` as in setup.start. Raises InputError."""
    started = start(job, check, prepared)
    if job.plan:
        return started
    if job.method.needs.stages or job.method.needs.init_adapter:
        started = after_stages(started)
        started.clock.lap("earlier stages")
    started = with_frozen_outputs(started)
    started.clock.lap("start")
    return started


def with_frozen_outputs(started: Started[J]) -> Started[J]:
    """The job with the outputs of frozen models for its records, where its method needs them, and for drift."""
    from raytune_llm.jobs.drift import with_guard
    from raytune_llm.jobs.precompute import precompute_on_cluster
    from raytune_llm.jobs.prepare import with_sources

    found = precompute_on_cluster(started.job, started.prepared.encoded, use_gpu=started.use_gpu)
    examples = with_sources(found, started.job, started.prepared.splits)
    examples = with_guard(examples, started.job, started.prepared.guard, use_gpu=started.use_gpu)
    return replace(started, prepared=replace(started.prepared, encoded=found.encoded, examples=examples))


def after_stages(started: Started[J]) -> Started[J]:
    """The job with the versions that its method has trained first, once for all its trials. A resumed run takes the
    versions that it has already published."""
    from raytune_llm.jobs.stage_jobs import finished, inherited, stage_job

    job, earlier = inherited(started.job), []
    if (initial := job.method.needs.init_adapter) is not None:
        print(f"continuing in {initial}, whose size and settings are inherited: adapter_size={job.tuning.adapter_size}")
    stages = job.method.needs.stages
    for place, stage in enumerate(stages, start=1):
        own = stage_job(job, stage)
        version = finished(own)
        print(f"\nstage {place} of {len(stages) + 1}: {stage.meaning}, {own.name}", flush=True)
        if version is None:
            outcome, published, *_ = train_version(prepare_job(own, prepared=started.of_stages.get(stage.name)))
            print(summary.of_stage(own, outcome, published), flush=True)
            version = published.version
        else:
            print(f"already published: {version.reference}", flush=True)
        job = inherited(job.with_values({stage.key: version.reference}))
        earlier.append(version)
    if stages:
        print(f"\nstage {len(stages) + 1} of {len(stages) + 1}: {job.name}", flush=True)
    return replace(started, job=job, earlier=tuple(earlier))


def train_version(started: Started[J]) -> tuple[Outcome, PublishResult, list[tuple[str, str]], str | None]:
    """Train a started job's one trial and publish its best checkpoint; also what was predicted and where the report is,
    for the summary."""
    job = started.job
    with explain_disk_full(job.home, job.run), worker_input_errors():
        import ray

        from raytune_llm.jobs.forecasting import only_trial
        from raytune_llm.jobs.prediction import Prediction
        from raytune_llm.jobs.publish import publish
        from raytune_llm.jobs.report import collect
        from raytune_llm.jobs.report.write import write_run_report
        from raytune_llm.jobs.run_result import write_result
        from raytune_llm.jobs.tracking import run_begins, run_ended
        from raytune_llm.training import checkpoints
        from raytune_llm.training.ray_train import TrialSetup
        from raytune_llm.training.ray_train import train as run_trial

        prepared = started.prepared
        setup = TrialSetup(
            spec=TrialSpec(
                config=job.trial_config(prepared.better, prepared.answering),
                trial=Trial(id="train", values={}),
                milestones=(job.tuning.steps,),
            ),
            examples=ray.put(prepared.examples),
            use_gpu=started.use_gpu,
            group=None,
            interactive=started.interactive,
            cpus=job.scaling.cpus_per_worker or cluster.cpus_for_a_run(job.scaling.num_workers, started.use_gpu),
        )
        run_begins(started, setup.spec)
        prediction = Prediction(started, only_trial(job), setup.examples)
        prediction.begin()
        resumes = checkpoints.latest(setup.spec.directory) is not None
        outcome = run_trial(setup)
        status.update(state=State.comparing)
        started.clock.lap("training")
        prediction.trained([outcome], memory_bytes=0, is_whole=not resumes)
        parent = job.method.needs.init_adapter
        published = publish(job, prepared, outcome, parent=parent, use_gpu=started.use_gpu, forecast=prediction.record)
        record, predicted = prediction.record(), prediction.lines()
        started.clock.lap("comparing and publishing")
        page = write_run_report(job.run_dir, lambda: collect.of_training(started, outcome, published))
        run_ended(started, setup.spec, outcome, published)
        write_result(job, prepared, [outcome], outcome, published, record)
        return outcome, published, predicted, page
