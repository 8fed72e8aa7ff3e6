"""The jobs of the stages that a method has trained first, and what its own job inherits from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TypeVar

from raytune_llm.data.findings import many
from raytune_llm.data.records import Record
from raytune_llm.errors import InputError
from raytune_llm.jobs.comparison import Promote, Promotion
from raytune_llm.jobs.schema import TrainJob
from raytune_llm.methods.base import Method, Stage
from raytune_llm.methods.model_refs import resolve_ref
from raytune_llm.models.adapters.base import Adapter
from raytune_llm.stores.card import Version
from raytune_llm.stores.components import build
from raytune_llm.stores.registry import Registry
from raytune_llm.training.tracking.base import JobTracker

J = TypeVar("J", bound=TrainJob)


def inherited(job: J) -> J:
    """The job with the size and settings of the adapter in which its training continues, where it names one."""
    reference = job.method.needs.init_adapter
    if reference is None:
        return job
    registry = Registry(job.registry_dir)
    version = resolve_ref(registry, "method.init_adapter", reference, kind="adapter", base=job.model)
    config = version.card.config
    job = replace(job, adapter=build(Adapter, config["adapter"]))
    size = config["tuning"]["adapter_size"]
    return job.with_values({"method.init_adapter": version.reference, "tuning.adapter_size": size})


def stage_job(job: TrainJob, stage: Stage) -> TrainJob:
    """The job of a stage: the same base and knobs, at the recommended rate, by the stage's method, without arguments of
    another method's trainer."""
    tuning = replace(job.tuning, steps=stage.steps, learning_rate_multiplier=1.0)
    scaling = replace(job.scaling, trainer={})
    promote = Promote(when=Promotion.always, max_drift=None)
    own = {field.name: getattr(job, field.name) for field in fields(TrainJob)}
    values = {"name": f"{job.name}-{stage.name}", "method": stage.method, "data": stage.records_of(job.data)}
    values["evaluation"] = job.evaluation.of_stage()
    values["tracking"] = {
        name: one for name, one in job.tracking.items() if not isinstance(one, JobTracker) or not one.takes_one_run
    }
    return TrainJob(**own | values | {"tuning": tuning, "scaling": scaling, "promote": promote})


def finished(job: TrainJob) -> Version | None:
    """The version that this run of the job has published already."""
    return next(iter(published_by(job)), None)


def published_by(job: TrainJob) -> list[Version]:
    """The versions of this run of the job: several only of a sweep that was extended."""
    versions = [version for version in Registry(job.registry_dir).list() if version.name == job.name]
    return [version for version in versions if version.card.config["run"] == job.run]


def check(job: TrainJob, records: Sequence[Record]) -> None:
    """Refuse stages that this job can't have. `records` are those of data.train. Raises InputError."""
    for stage in job.method.needs.stages:
        stage_job(job, stage)
    check_records(job.method, records)


def check_records(method: Method, records: Sequence[Record]) -> None:
    """Refuse records of data.train that the stages before a method's own training can't be given. Raises InputError."""
    for stage in method.needs.stages:
        wrong = [] if stage.data else [record for record in records if not isinstance(record, stage.method.records)]
        if wrong:
            raise InputError(
                f"data.train can't be used for {stage.meaning}: {len(wrong)} of its {many(len(records), 'record')} "
                f"{'is' if len(wrong) == 1 else 'are'} of kind "
                f"{type(wrong[0]).__name__}; {stage.remedy}"
            )
